"""The methods of the gRPC services, each from a request message to a response message.

No transport comes in: a frontend is given the methods, and an error is raised as a ServingError with its status.
"""
