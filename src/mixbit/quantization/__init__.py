"""Numbers in few bits: calibration, scales, biases, masks; from a float graph to a simulated one."""

from mixbit.quantization.calibrate import Calibration as Calibration, calibrate as calibrate
from mixbit.quantization.offers import uniform_plan as uniform_plan
from mixbit.quantization.prepare import equalized as equalized, reestimated as reestimated
