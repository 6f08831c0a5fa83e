"""recipe(): a plan as the text that another tool reads."""

from mixbit.core import InvalidInput, Plan, checked
from mixbit.recipes import RECIPES, Recipe


@checked
def recipe(plan: Plan, tool: str | Recipe) -> str:
    """The plan as the tool's own configuration, for the same network there.

    Args:
        plan: Any plan; neither the network nor the tool is needed.
        tool: Name of one of RECIPES, with options as in `llmcompressor:modifier=gptq`, or a function of a plan.

    Returns:
        Content of the tool's file.

    Raises:
        InvalidInput: no such tool or option, or a layer takes a scheme that the tool's file cannot say.
    """
    name, write = RECIPES.find(tool)
    text = write(plan)
    if not isinstance(text, str):
        raise InvalidInput(f"tool {name}: returns a {type(text).__name__}; return the text of the file")
    return text
