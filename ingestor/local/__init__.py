"""The venue in a box, the embedded Kinesis, and the demo that wires them to the real service."""
