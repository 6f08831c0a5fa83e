"""What `mixbit demo` runs on: a small residual network and handwritten digits."""
