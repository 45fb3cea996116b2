package outbound

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// asked is a question as a C library words it.
func asked(name string, kind uint16, edns bool) []byte {
	q := question{id: 7, kind: kind, edns: edns, secure: edns}
	for l := range strings.SplitSeq(name, ".") {
		q.name = append(append(q.name, byte(len(l))), l...)
	}
	q.name = append(q.name, 0)
	return q.ask(7)
}

func TestQuestion(t *testing.T) {
	for _, edns := range []bool{false, true} {
		msg := asked("Public.Example.COM", 28, edns)
		q, err := parseQuestion(msg)
		if err != nil || q.text != "public.example.com" || q.kind != 28 || q.id != 7 || !q.desired || q.edns != edns || q.secure != edns {
			t.Fatalf("%+v %v", q, err)
		}
		again := q.ask(7)
		if !bytes.Equal(again, msg) {
			t.Errorf("%x, want %x", again, msg)
		}
		no := q.says(codeNoName)
		if !q.answered(no, 7) || no[3]&0xf != codeNoName {
			t.Errorf("%x", no)
		}
		if q.answered(no, 8) || q.answered(msg, 7) || q.answered(no[:20], 7) {
			t.Error("took what is no answer for one")
		}
		other, _ := parseQuestion(asked("other.example.com", 28, false))
		if other.answered(no, 7) {
			t.Error("took the answer to another question")
		}
	}
	for name, change := range map[string]func([]byte) []byte{
		"an answer":        func(b []byte) []byte { b[2] |= 0x80; return b },
		"an update":        func(b []byte) []byte { b[2] |= 5 << 3; return b },
		"two questions":    func(b []byte) []byte { b[5] = 2; return b },
		"with answers":     func(b []byte) []byte { b[7] = 1; return b },
		"a transfer":       func(b []byte) []byte { b[len(b)-3] = 252; return b },
		"any":              func(b []byte) []byte { b[len(b)-3] = 255; return b },
		"chaos":            func(b []byte) []byte { b[len(b)-1] = 3; return b },
		"cut off":          func(b []byte) []byte { return b[:len(b)-2] },
		"header only":      func(b []byte) []byte { return b[:12] },
		"compressed":       func(b []byte) []byte { b[12] = 0xc0; return b },
		"no OPT after all": func(b []byte) []byte { b[11] = 1; return b },
		"another record":   func(b []byte) []byte { b[11] = 1; return append(b, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0) },
	} {
		if q, err := parseQuestion(change(asked("a.example.com", 1, false))); err == nil {
			t.Errorf("%s was taken: %+v", name, q)
		}
	}
	long := strings.Repeat("a123456789.", 23) + "aa"
	if _, err := parseQuestion(asked(long, 1, false)); err == nil {
		t.Errorf("a name of %d was taken", len(long)+2)
	}
}

func FuzzQuestion(f *testing.F) {
	f.Add(asked("public.example.com", 1, false))
	f.Add(asked("a.b", 16, true))
	f.Add(asked("10.0.0.127.in-addr.arpa", 12, false))
	f.Fuzz(func(t *testing.T, msg []byte) {
		q, err := parseQuestion(msg)
		if err != nil {
			return
		}
		isLocal(q.text, func(netip.Addr) bool { return false })
		// What is asked in its place is a plain question for the same.
		again, err := parseQuestion(q.ask(9))
		if err != nil || again.text != q.text || again.kind != q.kind || again.id != 9 || again.edns != q.edns {
			t.Errorf("%+v became %+v: %v", q, again, err)
		}
		if !q.answered(q.says(codeFailed), q.id) {
			t.Error("its own refusal is no answer")
		}
	})
}

func TestLocalNames(t *testing.T) {
	blocked := func(a netip.Addr) bool { return Blocked(netip.AddrPortFrom(a, 80), home) != nil }
	for name, local := range map[string]bool{
		"example.com": false, "": false, "lan.example.com": false, "local.net": false, "notlocal": true,
		"router": true, "router.lan": true, "nas.local": true, "vault.internal": true, "x.home.arpa": true, "a.localhost": true,
		"1.77.168.192.in-addr.arpa": true, "168.192.in-addr.arpa": true, "10.in-addr.arpa": true, "254.169.254.169.in-addr.arpa": true,
		"1.70.60.45.in-addr.arpa": true, "34.216.184.93.in-addr.arpa": false, "x.216.184.93.in-addr.arpa": false,
		"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.4.3.2.1.b.0.a.2.ip6.arpa": true,
		"8.e.f.ip6.arpa": true, "1.1.1.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.7.4.6.0.6.2.ip6.arpa": false,
	} {
		if isLocal(name, blocked) != local {
			t.Errorf("%q: local is %v", name, !local)
		}
	}
}

func TestServers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# x\nsearch lan\nnameserver 192.168.77.1\nnameserver fe80::1%eth0\nnameserver nonsense\noptions edns0\nnameserver 1.1.1.1\nnameserver 8.8.8.8\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	list := func(s ...string) (all []netip.AddrPort) {
		for _, a := range s {
			all = append(all, netip.MustParseAddrPort(a))
		}
		return all
	}
	if got, want := servers(file), list("192.168.77.1:53", "[fe80::1%eth0]:53", "1.1.1.1:53"); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got, want := servers(file+"-not"), list("127.0.0.1:53"); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
