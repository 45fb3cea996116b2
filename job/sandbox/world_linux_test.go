package sandbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A world is two network namespaces joined by a cable: the provider's machine,
// and all that it can reach. Every address of the second is served alike, so
// that what is not reached was kept away, and not missing.
//
//	machine 192.168.77.2, 45.60.70.2, 2a0b:1234::2 --- 192.168.77.1 and so on
//	                                        public      93.184.216.34, 2a01:4f8::34
//	                                        not public  the rest of worldAddrs
type world struct {
	t       *testing.T
	machine *netThread
	beyond  *netThread
	resolv  string

	mu   sync.Mutex
	hits map[string]int // by the address that was reached, tcp or udp before it
}

const (
	worldPublic  = "93.184.216.34"
	worldPublic6 = "2a01:4f8::34"
	portEcho     = "7000" // TCP: all of it in capitals at its end; UDP: each one
	portZeros    = "7001" // TCP: without an end
	portSteady   = "7002" // TCP: as it comes
)

// worldAddrs are those of the world beyond that no container may reach.
var worldAddrs = []string{
	"192.168.77.1", "45.60.70.1", "10.1.2.3", "172.20.0.1", "100.64.1.1", "169.254.169.254", "168.63.129.16",
	"198.18.0.1", "203.0.113.5", "192.0.2.9", "2a0b:1234::1", "fd00:ec2::254", "fd77::1", "2001:db8::9", "2002:a01:203::1",
}

// newWorld builds one, for root with the ip command.
func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("it makes network namespaces: run as root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("it makes network namespaces with the ip command: install iproute2")
	}
	w := &world{t: t, hits: map[string]int{}, resolv: filepath.Join(t.TempDir(), "resolv.conf")}
	must(t, os.WriteFile(w.resolv, []byte("# of a home\nnameserver 192.168.77.1\n"), 0o644))
	must(t, os.Chmod(filepath.Dir(w.resolv), 0o755)) //nolint:gosec // read by another user
	w.machine, w.beyond = newNetThread(t), newNetThread(t)
	w.machine.ip("link add h0 type veth peer name i0")
	w.machine.ip("link set i0 netns " + w.beyond.path())
	for _, n := range []struct {
		t     *netThread
		dev   string
		last  string
		other string
	}{{w.machine, "h0", "2", "1"}, {w.beyond, "i0", "1", "2"}} {
		n.t.ip("link set lo up")
		n.t.ip("link set " + n.dev + " up")
		n.t.ip("addr add 192.168.77." + n.last + "/24 dev " + n.dev)
		n.t.ip("addr add 45.60.70." + n.last + "/24 dev " + n.dev)
		n.t.ip("-6 addr add 2a0b:1234::" + n.last + "/64 dev " + n.dev + " nodad")
		n.t.ip("route add default via 192.168.77." + n.other)
		n.t.ip("-6 route add default via 2a0b:1234::" + n.other)
	}
	for _, a := range append([]string{worldPublic, worldPublic6}, worldAddrs...) {
		if addr := netip.MustParseAddr(a); addr.Is4() {
			w.beyond.ip("addr replace " + a + "/32 dev lo")
		} else {
			w.beyond.ip("-6 addr replace " + a + "/128 dev lo nodad")
		}
	}
	w.serve(w.beyond, ":"+portEcho, w.capitals)
	w.serve(w.beyond, ":"+portZeros, w.zeros)
	w.serve(w.beyond, ":"+portSteady, w.steady)
	w.serve(w.beyond, ":25", w.capitals)
	w.serve(w.machine, ":"+portEcho, w.capitals)
	for _, at := range []*netThread{w.beyond, w.machine} {
		w.datagrams(at, ":"+portEcho, func(_ string, b []byte) []byte { return []byte(strings.ToUpper(string(b))) })
	}
	w.datagrams(w.beyond, "192.168.77.1:53", func(_ string, b []byte) []byte { return answerDNS(b, 512) })
	w.serve(w.beyond, "192.168.77.1:53", namesTCP)
	return w
}

func (w *world) hit(network string, addr net.Addr) {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hits[fmt.Sprintf("%s %s %d", network, ap.Addr().Unmap().WithZone(""), ap.Port())]++
}

func (w *world) serve(at *netThread, addr string, talk func(*net.TCPConn)) {
	var l net.Listener
	at.do(func() {
		var err error
		l, err = new(net.ListenConfig).Listen(context.Background(), "tcp", addr)
		must(w.t, err)
	})
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	w.t.Cleanup(func() { cancel(); _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.hit("tcp", conn.LocalAddr())
			wg.Go(func() {
				stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
				defer stop()
				defer func() { _ = conn.Close() }()
				talk(conn.(*net.TCPConn))
			})
		}
	})
}

func (w *world) capitals(c *net.TCPConn) {
	all, err := io.ReadAll(c)
	if err == nil {
		_, _ = io.WriteString(c, strings.ToUpper(string(all)))
	}
}

func (w *world) zeros(c *net.TCPConn) {
	for b := make([]byte, 64<<10); ; {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

func (w *world) steady(c *net.TCPConn) { _, _ = io.Copy(c, c) }

func (w *world) datagrams(at *netThread, addr string, answer func(to string, b []byte) []byte) {
	var c *net.UDPConn
	at.do(func() {
		pc, err := new(net.ListenConfig).ListenPacket(context.Background(), "udp", addr)
		must(w.t, err)
		c = pc.(*net.UDPConn)
		raw, err := c.SyscallConn()
		must(w.t, err)
		must(w.t, raw.Control(func(fd uintptr) { // where each one was sent to
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}))
	})
	var wg sync.WaitGroup
	w.t.Cleanup(func() { _ = c.Close(); wg.Wait() })
	wg.Go(func() {
		buf, oob := make([]byte, 64<<10), make([]byte, 512)
		for {
			n, k, _, from, err := c.ReadMsgUDPAddrPort(buf, oob)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			to, control := sentTo(oob[:k])
			w.mu.Lock()
			w.hits["udp "+to]++
			w.mu.Unlock()
			_, _, _ = c.WriteMsgUDPAddrPort(answer(to, buf[:n]), control, from)
		}
	})
}

// sentTo gives the address that a datagram came to, and what sends the answer
// from there.
func sentTo(oob []byte) (string, []byte) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return "", nil
	}
	for _, m := range msgs {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= 12:
			var a [4]byte
			copy(a[:], m.Data[8:12])
			return netip.AddrFrom4(a).String(), unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: a})
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16:
			var a [16]byte
			copy(a[:], m.Data)
			return netip.AddrFrom16(a).Unmap().String(), unix.PktInfo6(&unix.Inet6Pktinfo{Addr: a})
		}
	}
	return "", nil
}

// worldNames is what the provider's resolver knows.
var worldNames = map[string][]string{
	"public.example.com.": {worldPublic, worldPublic6},
	"inside.example.com.": {"192.168.77.1", "169.254.169.254"},
	"router.lan.":         {"192.168.77.1"},
}

// answerDNS answers one plain question; by UDP no more than most bytes of it.
func answerDNS(q []byte, most int) []byte {
	if len(q) < 12 {
		return nil
	}
	name, at := "", 12
	for at < len(q) && q[at] != 0 {
		name += strings.ToLower(string(q[at+1:at+1+int(q[at])])) + "."
		at += 1 + int(q[at])
	}
	if at+5 > len(q) {
		return nil
	}
	kind := binary.BigEndian.Uint16(q[at+1:])
	a := append([]byte(nil), q[:at+5]...)
	a[2], a[3] = 0x81, 0x80
	copy(a[6:12], make([]byte, 6))
	records := uint16(0)
	add := func(kind uint16, data []byte) {
		records++
		a = append(a, 0xc0, 12)
		a = binary.BigEndian.AppendUint16(a, kind)
		a = append(a, 0, 1, 0, 0, 0, 60)
		a = binary.BigEndian.AppendUint16(a, uint16(len(data))) //nolint:gosec // small
		a = append(a, data...)
	}
	for _, s := range worldNames[name] {
		if addr := netip.MustParseAddr(s); addr.Is4() && kind == 1 || addr.Is6() && kind == 28 {
			add(kind, addr.AsSlice())
		}
	}
	if name == "long.example.com." && kind == 16 {
		for range 20 {
			add(kind, append([]byte{200}, make([]byte, 200)...))
		}
	}
	if worldNames[name] == nil && records == 0 {
		a[3] |= 3 // there is no such name
	}
	if len(a) > most {
		a, records = a[:at+5], 0
		a[2] |= 2 // cut off: ask again by TCP
	}
	binary.BigEndian.PutUint16(a[6:], records)
	return a
}

func namesTCP(c *net.TCPConn) {
	for {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		q := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, q); err != nil {
			return
		}
		a := answerDNS(q, 1<<16)
		_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)) //nolint:gosec // small
	}
}

// netThread is a thread in a network namespace of its own, which goes with it.
type netThread struct {
	t    *testing.T
	tid  int
	todo chan func()
}

func newNetThread(t *testing.T) *netThread {
	t.Helper()
	n := &netThread{t: t, todo: make(chan func())}
	made := make(chan error)
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this
		n.tid = unix.Gettid()
		made <- unix.Unshare(unix.CLONE_NEWNET)
		for f := range n.todo {
			f()
		}
	})
	t.Cleanup(func() { close(n.todo); wg.Wait() })
	if err := <-made; err != nil {
		t.Skipf("this machine lets nobody make a network namespace: %v", err)
	}
	return n
}

// do runs f there. What f starts as a process is there too.
func (n *netThread) do(f func()) {
	done := make(chan struct{})
	n.todo <- func() { defer close(done); f() }
	<-done
}

func (n *netThread) path() string { return fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), n.tid) }

func (n *netThread) ip(args string) {
	n.t.Helper()
	var out []byte
	var err error
	n.do(func() {
		out, err = exec.CommandContext(n.t.Context(), "ip", strings.Fields(args)...).CombinedOutput()
	})
	if err != nil {
		n.t.Fatalf("ip %s: %v: %s", args, err, out)
	}
}
