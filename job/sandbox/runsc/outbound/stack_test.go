package outbound

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/fdbased"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const long = 60 * time.Second // a backstop

// box is a container's stack with the network under test behind it. What that
// would send to the internet goes to servers on the loopback.
type box struct {
	t      *testing.T
	net    *Network
	meter  *Meter
	inside *stack.Stack

	mu     sync.Mutex
	routes map[string]string // "tcp 93.184.216.34:80" to a local address
	dialed []string
}

func newBox(t *testing.T, limit uint64) *box {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	ok(t, err)
	b := &box{t: t, meter: NewMeter(limit), routes: map[string]string{}}
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	ok(t, os.WriteFile(resolv, []byte("nameserver 192.168.77.1\n"), 0o600))
	b.net, err = New(Options{
		FD: fds[0], Meter: b.meter, Resolv: resolv, Log: slog.New(slog.DiscardHandler), connect: b.connect, answerTime: long,
		Own: func() ([]netip.Prefix, error) { return home, nil },
	})
	ok(t, err)
	var end func()
	b.inside, end = insideStack(t, fds[1])
	t.Cleanup(func() {
		b.net.Close()
		end()
		ok(t, unix.Close(fds[1]))
	})
	return b
}

func insideStack(t *testing.T, fd int) (s *stack.Stack, end func()) {
	t.Helper()
	ep, err := fdbased.New(&fdbased.Options{FDs: []int{fd}, MTU: MTU, PacketDispatchMode: fdbased.Readv, RXChecksumOffload: true, TXChecksumOffload: true})
	ok(t, err)
	l := &link{admits: func(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) bool { return true }}
	l.Init(ep, l)
	s = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := s.CreateNIC(nic, l); err != nil {
		t.Fatal(err)
	}
	for proto, p := range map[tcpip.NetworkProtocolNumber]netip.Prefix{ipv4.ProtocolNumber: Addr4, ipv6.ProtocolNumber: Addr6} {
		a := tcpip.ProtocolAddress{Protocol: proto, AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFromSlice(p.Addr().AsSlice()), PrefixLen: p.Bits()}}
		if err := s.AddProtocolAddress(nic, a, stack.AddressProperties{}); err != nil {
			t.Fatal(err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	return s, func() {
		l.silence()
		s.Destroy()
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// route lets an address of the internet be served at a local one.
func (b *box) route(network, public, local string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.routes[network+" "+public] = local
}

func (b *box) connect(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	b.mu.Lock()
	name := network + " " + to.String()
	b.dialed = append(b.dialed, name)
	local := b.routes[name]
	b.mu.Unlock()
	if local == "" {
		return nil, syscall.ECONNREFUSED
	}
	return new(net.Dialer).DialContext(ctx, network, local)
}

// serve answers TCP connections to a public address.
func (b *box) serve(public string, talk func(*net.TCPConn)) {
	b.t.Helper()
	l, err := new(net.ListenConfig).Listen(b.t.Context(), "tcp", "127.0.0.1:0")
	ok(b.t, err)
	b.route("tcp", public, l.Addr().String())
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	b.t.Cleanup(func() { cancel(); _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				stop := context.AfterFunc(ctx, func() { _ = c.Close() })
				defer stop()
				defer func() { _ = c.Close() }()
				talk(c.(*net.TCPConn))
			})
		}
	})
}

// serveUDP answers datagrams to a public address.
func (b *box) serveUDP(public string, answer func([]byte) []byte) {
	b.t.Helper()
	c, err := new(net.ListenConfig).ListenPacket(b.t.Context(), "udp", "127.0.0.1:0")
	ok(b.t, err)
	b.route("udp", public, c.LocalAddr().String())
	var wg sync.WaitGroup
	b.t.Cleanup(func() { _ = c.Close(); wg.Wait() })
	wg.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo(answer(buf[:n]), from)
		}
	})
}

func full(to string) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	ap := netip.MustParseAddrPort(to)
	proto := ipv4.ProtocolNumber
	if ap.Addr().Is6() {
		proto = ipv6.ProtocolNumber
	}
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(ap.Addr().AsSlice()), Port: ap.Port()}, proto
}

func (b *box) dial(to string) (*gonet.TCPConn, error) {
	addr, proto := full(to)
	ctx, cancel := context.WithTimeout(b.t.Context(), long)
	defer cancel()
	c, err := gonet.DialContextTCP(ctx, b.inside, addr, proto)
	if err == nil {
		b.t.Cleanup(func() { _ = c.Close() })
		ok(b.t, c.SetDeadline(time.Now().Add(long)))
	}
	return c, err
}

func (b *box) dialUDP(to string) *gonet.UDPConn {
	b.t.Helper()
	addr, proto := full(to)
	c, err := gonet.DialUDP(b.inside, nil, &addr, proto)
	ok(b.t, err)
	b.t.Cleanup(func() { _ = c.Close() })
	ok(b.t, c.SetDeadline(time.Now().Add(long)))
	return c
}

// refusedUDP sends a datagram and waits to be told that nobody is there.
func (b *box) refusedUDP(to string) {
	b.t.Helper()
	addr, proto := full(to)
	var wq waiter.Queue
	failed, news := waiter.NewChannelEntry(waiter.EventErr)
	wq.EventRegister(&failed)
	ep, err := b.inside.NewEndpoint(udp.ProtocolNumber, proto, &wq)
	if err != nil {
		b.t.Fatal(err)
	}
	defer ep.Close()
	if err := ep.Connect(addr); err != nil {
		b.t.Fatalf("%s: %s", to, err)
	}
	if _, err := ep.Write(strings.NewReader("x"), tcpip.WriteOptions{}); err != nil {
		b.t.Fatalf("%s: %s", to, err)
	}
	select {
	case <-news:
	case <-time.After(long):
	}
	if err, refused := ep.LastError().(*tcpip.ErrConnectionRefused); !refused {
		b.t.Errorf("%s by UDP: %v", to, err)
	}
}

// wasDialed lists what was dialled for the container.
func (b *box) wasDialed() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return strings.Join(b.dialed, ", ")
}

func capitals(c *net.TCPConn) {
	if all, err := io.ReadAll(c); err == nil {
		_, _ = c.Write(bytes.ToUpper(all))
	}
}

func TestTCP(t *testing.T) {
	b := newBox(t, 1<<30)
	sent := strings.Repeat("all of it before an answer. ", 100_000)
	for _, to := range []string{"93.184.216.34:80", "[2606:4700::1]:80"} {
		b.serve(to, capitals)
		c, err := b.dial(to)
		ok(t, err)
		_, err = io.WriteString(c, sent)
		ok(t, err)
		ok(t, c.CloseWrite())
		got, err := io.ReadAll(c)
		if err != nil || string(got) != strings.ToUpper(sent) {
			t.Errorf("%s: %d bytes, %v", to, len(got), err)
		}
	}
	want := uint64(2 * len(sent))
	if r := b.meter.Report(); r.Down != want || r.Up != want+2*connectCost || r.Over {
		t.Errorf("%+v, want %d", r, want)
	}
}

// TestOtherHalf: the server ends first, and still gets what is sent then.
func TestOtherHalf(t *testing.T) {
	b := newBox(t, 1<<30)
	got := make(chan string, 1)
	b.serve("93.184.216.34:80", func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "hello")
		_ = c.CloseWrite()
		all, _ := io.ReadAll(c)
		got <- string(all)
	})
	c, err := b.dial("93.184.216.34:80")
	ok(t, err)
	hello, err := io.ReadAll(c)
	if err != nil || string(hello) != "hello" {
		t.Fatalf("%q %v", hello, err)
	}
	_, err = io.WriteString(c, "after your end")
	ok(t, err)
	ok(t, c.CloseWrite())
	if s := <-got; s != "after your end" {
		t.Errorf("%q", s)
	}
}

// TestReset: what breaks on one side breaks on the other.
func TestReset(t *testing.T) {
	b := newBox(t, 1<<30)
	broken := make(chan error, 1)
	b.serve("93.184.216.34:80", func(c *net.TCPConn) {
		_, _ = c.Write([]byte{1})
		_, err := io.ReadAll(c)
		broken <- err
	})
	b.serve("93.184.216.34:81", func(c *net.TCPConn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.SetLinger(0)
	})
	c, err := b.dial("93.184.216.34:81")
	ok(t, err)
	_, err = c.Write([]byte{1})
	ok(t, err)
	if _, err := io.ReadAll(c); err == nil {
		t.Error("a reset came as an end")
	}
	c, err = b.dial("93.184.216.34:80")
	ok(t, err)
	_, err = c.Read(make([]byte, 1)) // the connection is through
	ok(t, err)
	b.net.abortAll()
	if err := <-broken; err == nil {
		t.Error("an abort came to the server as an end")
	}
	if _, err := io.ReadAll(c); err == nil {
		t.Error("an abort came to the container as an end")
	}
}

func TestRefused(t *testing.T) {
	b := newBox(t, 1<<30)
	if _, err := b.dial("93.184.216.34:80"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody listens there: %v", err)
	}
	if got := b.wasDialed(); got != "tcp 93.184.216.34:80" {
		t.Errorf("dialled %s", got)
	}
}

// TestNothingElse: no blocked address is ever dialled, by either protocol.
func TestNothingElse(t *testing.T) {
	b := newBox(t, 1<<30)
	for _, to := range []string{
		"10.0.0.1:80", "10.89.0.1:80", "10.89.0.1:54", "192.168.77.1:53", "169.254.169.254:80", "100.64.0.1:80",
		"45.60.70.1:80", "45.60.70.255:80", "168.63.129.16:80", "203.0.113.1:80", "93.184.216.34:25",
		"[fd6c:756d:6275:6e67::1]:80", "[fd00:ec2::254]:80", "[2a0b:1234::1]:80", "[64:ff9b::7f00:1]:80", "[2002:7f00:1::]:80",
	} {
		if _, err := b.dial(to); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("%s by TCP: %v", to, err)
		}
		b.refusedUDP(to)
	}
	if got := b.wasDialed(); got != "" {
		t.Errorf("dialled %s", got)
	}
	if r := b.meter.Report(); r.Down != 0 {
		t.Errorf("%+v", r)
	}
}

func TestUDP(t *testing.T) {
	b := newBox(t, 1<<30)
	for _, to := range []string{"93.184.216.34:7", "[2606:4700::1]:7"} {
		b.serveUDP(to, bytes.ToUpper)
		c := b.dialUDP(to)
		for _, size := range []int{1, 1400, 40_000} {
			_, err := c.Write(bytes.Repeat([]byte("x"), size))
			ok(t, err)
			buf := make([]byte, 64<<10)
			n, err := c.Read(buf)
			if err != nil || n != size || buf[n-1] != 'X' {
				t.Fatalf("%s: %d of %d: %v", to, n, size, err)
			}
		}
	}
	const each = 1 + 1400 + 40_000 + 3*datagramCost
	if r := b.meter.Report(); r.Up != 2*each || r.Down != 2*each {
		t.Errorf("%+v, want %d", r, 2*each)
	}
}

func TestLimit(t *testing.T) {
	const limit = 1 << 20
	b := newBox(t, limit)
	b.serve("93.184.216.34:80", func(c *net.TCPConn) {
		for buf := make([]byte, 8<<10); ; {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	})
	b.serveUDP("93.184.216.34:7", bytes.ToUpper)
	other, err := b.dial("93.184.216.34:80") // which is ended too, though nobody reads it
	ok(t, err)
	c, err := b.dial("93.184.216.34:80")
	ok(t, err)
	n, err := io.Copy(io.Discard, c)
	if err == nil || n > limit {
		t.Errorf("%d bytes came: %v", n, err)
	}
	<-b.meter.Over()
	if _, err := io.Copy(io.Discard, other); err == nil {
		t.Error("another connection ended well")
	}
	if _, err := b.dial("93.184.216.34:80"); err == nil {
		t.Error("a new connection was made")
	}
	b.refusedUDP("93.184.216.34:7")
	if r := b.meter.Report(); !r.Over || r.Up+r.Down <= limit || r.Up+r.Down > limit+4*chunk+4*connectCost {
		t.Errorf("%+v", r)
	}
}

// TestBounds: a container can hold no more than its places, and gets them back.
func TestBounds(t *testing.T) {
	b := newBox(t, 1<<30)
	b.serve("93.184.216.34:80", func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	hold := func() *gonet.TCPConn {
		c, err := b.dial("93.184.216.34:80")
		ok(t, err)
		_, err = c.Write([]byte{1})
		ok(t, err)
		_, err = io.ReadFull(c, make([]byte, 1)) // it is through
		ok(t, err)
		return c
	}
	first := hold()
	for range maxConns - 1 {
		hold()
	}
	if _, err := b.dial("93.184.216.34:80"); err == nil {
		t.Error("there is no end of connections")
	}
	ok(t, first.Close())
	for deadline := time.Now().Add(long); ; {
		if c, err := b.dial("93.184.216.34:80"); err == nil {
			ok(t, c.Close())
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no place came free")
		}
	}
}

// TestUnread: a connection that is over takes its place for as long as the
// container has not read the rest of it.
func TestUnread(t *testing.T) {
	b := newBox(t, 1<<30)
	few := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 8 << 10, Max: 8 << 10}
	if err := b.inside.SetTransportProtocolOption(tcp.ProtocolNumber, &few); err != nil {
		t.Fatal(err)
	}
	const size = 64 << 10
	b.serve("93.184.216.34:80", func(c *net.TCPConn) { _, _ = c.Write(make([]byte, size)) })
	b.serve("93.184.216.34:81", capitals)
	places := func() int {
		b.net.mu.Lock()
		defer b.net.mu.Unlock()
		return b.net.count[kindTCP]
	}
	c, err := b.dial("93.184.216.34:80")
	ok(t, err)
	ok(t, c.CloseWrite())
	for range 20 { // each of these is over after all that is done for the first
		other, err := b.dial("93.184.216.34:81")
		ok(t, err)
		ok(t, other.CloseWrite())
		_, err = io.ReadAll(other)
		ok(t, err)
		ok(t, other.Close())
		for deadline := time.Now().Add(long); places() > 1; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("a place does not come free")
			}
		}
		if places() != 1 {
			t.Fatal("the place came free before the rest was read")
		}
	}
	all, err := io.ReadAll(c)
	if err != nil || len(all) != size {
		t.Fatalf("%d bytes, %v", len(all), err)
	}
	ok(t, c.Close())
	for deadline := time.Now().Add(long); places() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the place does not come free")
		}
	}
}

func TestIdle(t *testing.T) {
	b := newBox(t, 1<<30)
	b.serve("93.184.216.34:80", func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	b.serveUDP("93.184.216.34:7", bytes.ToUpper)
	c, err := b.dial("93.184.216.34:80")
	ok(t, err)
	u := b.dialUDP("93.184.216.34:7")
	for _, conn := range []net.Conn{c, u} {
		_, err := conn.Write([]byte{1})
		ok(t, err)
		_, err = conn.Read(make([]byte, 1))
		ok(t, err)
	}
	b.net.abortIdle()
	b.net.mu.Lock()
	if len(b.net.flows) != 2 {
		t.Errorf("%d flows, want 2", len(b.net.flows))
	}
	for f := range b.net.flows {
		f.mu.Lock()
		f.last = time.Now().Add(-f.idle - time.Minute)
		f.mu.Unlock()
	}
	b.net.mu.Unlock()
	b.net.abortIdle()
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("an idle connection goes on: %v", err)
	}
	// The flow of datagrams is made anew.
	_, err = u.Write([]byte{1})
	ok(t, err)
}

// TestAdmits: packets of other protocols and from other addresses are no
// concern of the stack.
func TestAdmits(t *testing.T) {
	mine, other := Addr4.Addr(), netip.MustParseAddr("10.89.0.3")
	mine6, other6 := Addr6.Addr(), netip.MustParseAddr("fd6c:756d:6275:6e67::3")
	for _, c := range []struct {
		src   netip.Addr
		proto uint8
		want  bool
	}{
		{mine, 6, true},
		{mine, 17, true},
		{mine, 1, false},
		{mine, 47, false},
		{other, 6, false},
		{other, 17, false},
		{mine6, 6, true},
		{mine6, 17, true},
		{mine6, 44, true},
		{mine6, 58, false},
		{mine6, 0, false},
		{mine6, 43, false},
		{other6, 6, false},
	} {
		b := make([]byte, header.IPv6MinimumSize)
		proto := header.IPv6ProtocolNumber
		src, dst := tcpip.AddrFromSlice(c.src.AsSlice()), tcpip.AddrFromSlice(c.src.AsSlice())
		if c.src.Is4() {
			proto = header.IPv4ProtocolNumber
			header.IPv4(b).Encode(&header.IPv4Fields{TotalLength: uint16(len(b)), Protocol: c.proto, SrcAddr: src, DstAddr: dst})
		} else {
			header.IPv6(b).Encode(&header.IPv6Fields{TransportProtocol: tcpip.TransportProtocolNumber(c.proto), SrcAddr: src, DstAddr: dst})
		}
		for size, want := range map[int]bool{len(b): c.want, 10: false} {
			pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b[:size])})
			if got := admits(proto, pkt); got != want {
				t.Errorf("%s protocol %d, %d bytes: %v", c.src, c.proto, size, got)
			}
			pkt.DecRef()
		}
	}
}

// TestManyAtOnce moves bytes on many connections while others begin and end.
func TestManyAtOnce(t *testing.T) {
	b := newBox(t, 1<<40)
	b.serve("93.184.216.34:80", capitals)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for range 5 {
				c, err := b.dial("93.184.216.34:80")
				if err != nil {
					t.Error(err)
					return
				}
				text := fmt.Sprintf("connection %d ", i)
				_, _ = io.WriteString(c, strings.Repeat(text, 2000))
				_ = c.CloseWrite()
				got, err := io.ReadAll(c)
				if err != nil || string(got) != strings.Repeat(strings.ToUpper(text), 2000) {
					t.Errorf("%d: %d bytes, %v", i, len(got), err)
				}
				_ = c.Close()
			}
		})
	}
	wg.Wait()
}
