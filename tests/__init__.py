"""The gateway's behaviour, shown over real sockets."""
