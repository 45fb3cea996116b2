// Command forwarder runs inside a container and connects what comes over its
// standard input, a Unix stream, to the container's own ports. Package sandbox
// starts it from a file outside when somebody first asks for a port.
package main

import (
	"net"
	"os"

	"github.com/lumbung-net/lumbung/job/sandbox/internal/portmux"
)

func main() {
	conn, err := net.FileConn(os.Stdin)
	if err == nil {
		_ = os.Stdin.Close()
		err = portmux.Serve(conn)
	}
	_ = err // nobody is there to read it: the other end sees this one gone
}
