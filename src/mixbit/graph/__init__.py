"""The captured network: its layers, how to run it and look on."""

from mixbit.graph.evaluate import evaluate as evaluate
from mixbit.graph.graph import Graph as Graph
