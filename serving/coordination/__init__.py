"""The coordinator and the protocol with its members: leases, activation, acknowledgement."""
