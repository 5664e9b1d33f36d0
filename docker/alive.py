"""The health check of the images: exit code 0 if the server or the page answers on this container's port.

The page answers 401, since it asks for a password first: whatever is no failure of the program's own is an answer.
"""

import http.client
import sys

PORT = 7860
FAILURE = 500

if __name__ == "__main__":
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
    try:
        connection.request("GET", "/health")
        sys.exit(connection.getresponse().status >= FAILURE)
    except (OSError, http.client.HTTPException) as error:
        sys.exit(f"nothing answers on port {PORT}: {error}")
