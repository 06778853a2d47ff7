"""What a task did to held-out images: the figures, the gates that judge them, the card."""
