"""Fine-tuning with the roundings in place: learned scales, distillation, checkpoints."""
