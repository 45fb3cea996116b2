package outbound

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// dialTime is how long a connection may take to be made.
const dialTime = 15 * time.Second

// dialer makes the connections that leave the machine.
type dialer struct {
	own     func() ([]netip.Prefix, error)
	connect func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)
}

// allow asks the policy, with the machine's addresses as they are now. When they
// cannot be read, nothing is allowed.
func (d dialer) allow(to netip.AddrPort) error {
	own, err := d.own()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBlocked, err)
	}
	return Blocked(to, own)
}

// dial connects to an address, never to a name: what was allowed is what is
// dialled. network is tcp or udp.
func (d dialer) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if err := d.allow(to); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	return d.connect(ctx, network, to)
}

// connect is what leaves the machine.
func connect(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	nd := net.Dialer{
		KeepAlive: time.Minute,
		Control: func(_, address string, _ syscall.RawConn) error {
			if at, err := netip.ParseAddrPort(address); err != nil || at.Port() != to.Port() || at.Addr().Unmap() != to.Addr().Unmap() {
				return fmt.Errorf("%w: %s instead of %s", ErrBlocked, address, to)
			}
			return nil
		},
	}
	return nd.DialContext(ctx, network, to.String())
}
