"""What is before the camera: expression, view, outfit, light and background of one photograph."""
