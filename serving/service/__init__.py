"""The methods of the gRPC services, each from a request message to a response message.

No transport comes in: a frontend calls the methods, and an error is a ServingError with its status.
"""
