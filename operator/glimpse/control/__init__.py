"""What happens to images and stores, and when. Never touches their bytes."""
