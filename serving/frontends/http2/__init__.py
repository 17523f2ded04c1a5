"""gRPC over HTTP/2 on the event loop itself: no thread, no copy and no wake-up between the socket and a method.

HTTP/2 is written here because a call costs 5 µs with it and 130 µs with the ``h2`` package, for the same bytes. The
parts of HTTP/2 that a gRPC server does not need (priorities, push, a table for HPACK) stay out, and so do models.

frontend           binds, accepts, stops
connection         one connection: its calls
socket_side        its socket: turns, flushes, the end
tls_side           TLS between the two
system_socket      what the system knows of a socket
frame_reader       from bytes to frames, data and header blocks
control            the other frames: settings, flow control, ping, reset
limits             what one client may use, and the fault that ends a connection
sending            flow control of the answers
requests           the method, deadline and compression that a block of headers asks for
opening            from headers to calls
refused_again      requests like one that was refused
rests              connections whose requests are refused, read more rarely
progress           gives up what does not progress
lifetime           age, idle time and silence of a connection, and its gentle end
past_streams       streams that were passed over or reset
leftovers          what frames, or the end of a connection, leave for later turns
patience           frames that lead to nothing
turns              the turns of connections: their length, and how many make a round
connection_places  how many connections there may be
holding            the bytes held for clients
call_places        the calls of a connection, with their memory
inflation          compressed messages
joining            large messages that came in parts
messages           length-prefixed messages
call               the common part of all calls: method, deadline, status
unary_call         one message each way
queued_call        a stream of messages: those that wait
each_call          a stream with one answer to each message
stream_call        any other stream
kinds              which of these a method needs; logged_calls has those with a line in the access log
"""
