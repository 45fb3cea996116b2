package outbound

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// TestGone: a container that lets go of the link is noticed, and its network
// ends.
func TestGone(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	ok(t, err)
	n, err := New(Options{
		FD: fds[0], Meter: NewMeter(1 << 20), Resolv: filepath.Join(t.TempDir(), "resolv.conf"), Log: slog.New(slog.DiscardHandler),
		Own: func() ([]netip.Prefix, error) { return nil, nil },
	})
	ok(t, err)
	ok(t, unix.Close(fds[1]))
	select {
	case <-n.Gone():
	case <-time.After(long):
		t.Error("it is not noticed")
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.Close()
	}()
	select {
	case <-ended:
	case <-time.After(long):
		t.Fatal("the network does not end")
	}
}

// TestCloseInAHandshake: a container that never finishes one does not hold its
// network up.
func TestCloseInAHandshake(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	ok(t, err)
	dialed := make(chan struct{})
	n, err := New(Options{
		FD: fds[0], Meter: NewMeter(1 << 20), Resolv: filepath.Join(t.TempDir(), "resolv.conf"), Log: slog.New(slog.DiscardHandler),
		Own: func() ([]netip.Prefix, error) { return nil, nil },
		connect: func(ctx context.Context, network string, _ netip.AddrPort) (net.Conn, error) {
			defer close(dialed)
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				return nil, err
			}
			defer func() { _ = l.Close() }()
			return (&net.Dialer{}).DialContext(ctx, network, l.Addr().String())
		},
	})
	ok(t, err)
	defer func() { ok(t, unix.Close(fds[1])) }()
	ok(t, unix.Sendmsg(fds[1], syn(t, "93.184.216.34:80"), nil, nil, 0))
	<-dialed
	buf := make([]byte, MTU+100)
	_, err = unix.Read(fds[1], buf) // the answer, which nobody acknowledges
	ok(t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.Close()
	}()
	select {
	case <-ended:
	case <-time.After(long):
		t.Fatal("the network does not end")
	}
}

// syn is the packet that a container begins a connection with.
func syn(t *testing.T, to string) []byte {
	t.Helper()
	dst := netip.MustParseAddrPort(to)
	src := tcpip.AddrFrom4(Addr4.Addr().As4())
	p := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize)
	ip := header.IPv4(p)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(p)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber),
		SrcAddr: src, DstAddr: tcpip.AddrFrom4(dst.Addr().As4()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	tcp := header.TCP(p[header.IPv4MinimumSize:])
	tcp.Encode(&header.TCPFields{SrcPort: 40000, DstPort: dst.Port(), SeqNum: 1, DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 1 << 15})
	return p
}
