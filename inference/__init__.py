"""Reading ultrasound images with a ResNet50."""
