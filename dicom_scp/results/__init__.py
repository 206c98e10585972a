"""What is made of a report: SR, heat map, segmentation, key images, paper."""
