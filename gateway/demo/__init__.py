"""What is needed to try and to test the gateway without a provider or a bill: a simulated provider."""
