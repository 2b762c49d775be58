"""What turns prompts, images and pixels into what the UNet reads."""
