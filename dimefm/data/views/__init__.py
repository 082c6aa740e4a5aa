"""Views: the random crops and text variants that a policy draws, and a cache replays."""
