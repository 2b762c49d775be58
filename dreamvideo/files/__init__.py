"""Files of networks, encoders, adapters and bases: recognised, read tensor by tensor, written as a stream."""
