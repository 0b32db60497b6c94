"""The promises of the front desk, each under what could break it, and proof that each test can fail."""
