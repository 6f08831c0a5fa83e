"""The captured network: its layers, how to run and watch it."""

from mixbit.graph.evaluate import evaluate as evaluate
from mixbit.graph.graph import Graph as Graph
