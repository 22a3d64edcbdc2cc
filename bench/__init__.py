"""What the gateway costs, measured beside a bare relay and other gateways: `make bench`."""
