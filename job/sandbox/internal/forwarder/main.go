// Command forwarder runs inside a container and connects what comes over its
// standard input, a Unix stream or with standard output a pair of pipes, to the
// container's own ports. Package sandbox starts it when somebody first asks for a
// port.
package main

import (
	"net"
	"os"

	"github.com/lumbung-net/lumbung/job/sandbox/internal/portmux"
)

func main() {
	conn, err := connection()
	if err == nil {
		err = portmux.Serve(conn)
	}
	_ = err // nobody is there to read it: the other end sees this one gone
}

func connection() (net.Conn, error) {
	info, err := os.Stdin.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode()&os.ModeSocket == 0 { // FileConn would make it not block
		return portmux.Pipes(os.Stdin, os.Stdout), nil
	}
	conn, err := net.FileConn(os.Stdin)
	if err == nil {
		_ = os.Stdin.Close()
	}
	return conn, err
}
