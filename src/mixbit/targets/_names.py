"""How artefacts name what belongs to a layer; names of parameters hold neither mark in practice."""

#: Between a layer's name and the part of its weight, in names of tensors.
SEPARATOR = "::"
#: Between a layer's name and the number of a further operator that reads its weight, in names of operators.
FURTHER = "#"
