package outbound

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	b := newBox(t, 1<<30)
	answer := func(msg []byte) []byte {
		q, err := parseQuestion(msg)
		if err != nil {
			return nil
		}
		a := q.says(0)
		if q.kind == 16 { // too long for UDP
			a[2] |= flagTrunc >> 8
		}
		return a
	}
	b.serveUDP("192.168.77.1:53", answer)
	b.serve("192.168.77.1:53", func(c *net.TCPConn) {
		msg, err := readFramed(c, maxQuestion)
		if err != nil {
			return
		}
		q, err := parseQuestion(msg)
		if err != nil {
			return
		}
		_ = writeFramed(c, append(q.says(0), make([]byte, 2000)...))
	})
	gateways := []string{netip.AddrPortFrom(Gateway4, 53).String(), netip.AddrPortFrom(Gateway6, 53).String()}
	for _, g := range gateways {
		u := b.dialUDP(g)
		ask := func(msg []byte) []byte {
			_, err := u.Write(msg)
			ok(t, err)
			buf := make([]byte, 4096)
			n, err := u.Read(buf)
			ok(t, err)
			return buf[:n]
		}
		if a := ask(asked("public.example.com", 1, true)); a[1] != 7 || a[3]&0xf != 0 {
			t.Errorf("%x", a)
		}
		if a := ask(asked("public.example.com", 16, false)); a[2]&(flagTrunc>>8) == 0 {
			t.Errorf("%x", a)
		}
		before := b.wasDialed()
		for _, name := range []string{"router", "nas.lan", "1.77.168.192.in-addr.arpa"} {
			if a := ask(asked(name, 1, false)); a[3]&0xf != codeNoName {
				t.Errorf("%s: %x", name, a)
			}
		}
		if a := ask(make([]byte, 40)); a[3]&0xf != codeFormat {
			t.Errorf("nonsense: %x", a)
		}
		if b.wasDialed() != before {
			t.Error("the resolver was asked for what it must not be")
		}
		c, err := b.dial(g)
		ok(t, err)
		ok(t, writeFramed(c, asked("public.example.com", 16, false)))
		if a, err := readFramed(c, 1<<16); err != nil || len(a) < 2000 || a[1] != 7 {
			t.Errorf("by TCP: %d %v", len(a), err)
		}
	}
	// Only the machine's resolver was asked, and nobody else.
	for d := range strings.SplitSeq(b.wasDialed(), ", ") {
		if !strings.HasSuffix(d, " 192.168.77.1:53") {
			t.Errorf("dialled %s", d)
		}
	}
}

// TestNoServer: a resolver that does not answer is a failure, not silence.
func TestNoServer(t *testing.T) {
	b := newBox(t, 1<<30)
	u := b.dialUDP(netip.AddrPortFrom(Gateway4, 53).String())
	_, err := u.Write(asked("public.example.com", 1, false))
	ok(t, err)
	buf := make([]byte, 512)
	if n, err := u.Read(buf); err != nil || buf[3]&0xf != codeFailed {
		t.Errorf("%x %v", buf[:n], err)
	}
}
