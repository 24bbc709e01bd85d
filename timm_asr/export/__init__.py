"""Write what timm loads, and publish it."""
