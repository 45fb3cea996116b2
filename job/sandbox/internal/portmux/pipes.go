package portmux

import (
	"errors"
	"net"
	"os"
	"time"
)

// Pipes makes a connection of two pipes. In a container whose state is saved the
// forwarder has these in place of a stream, which gVisor could not restore; there
// they block, as what came in before the state was saved wakes no poller after.
func Pipes(in, out *os.File) net.Conn { return &pipes{in, out} }

type pipes struct{ in, out *os.File }

// Read implements net.Conn.
func (p *pipes) Read(b []byte) (int, error) { return p.in.Read(b) }

// Write implements net.Conn.
func (p *pipes) Write(b []byte) (int, error) { return p.out.Write(b) }

// Close implements net.Conn.
func (p *pipes) Close() error { return errors.Join(p.in.Close(), p.out.Close()) }

// SetDeadline implements net.Conn.
func (p *pipes) SetDeadline(t time.Time) error {
	return errors.Join(p.SetReadDeadline(t), p.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn. A pipe that blocks has none.
func (p *pipes) SetReadDeadline(t time.Time) error { return deadline(p.in.SetReadDeadline(t)) }

// SetWriteDeadline implements net.Conn. A pipe that blocks has none.
func (p *pipes) SetWriteDeadline(t time.Time) error { return deadline(p.out.SetWriteDeadline(t)) }

func deadline(err error) error {
	if errors.Is(err, os.ErrNoDeadline) {
		return nil
	}
	return err
}

// LocalAddr implements net.Conn.
func (*pipes) LocalAddr() net.Addr { return pipeAddr{} }

// RemoteAddr implements net.Conn.
func (*pipes) RemoteAddr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

// Network implements net.Addr.
func (pipeAddr) Network() string { return "pipe" }

// String implements net.Addr.
func (pipeAddr) String() string { return "pipe" }
