package outbound

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

// home is a machine with a LAN of private addresses, a public one on its cable,
// and a VPN.
var home = ranges("192.168.77.2/24", "45.60.70.2/24", "2a0b:1234::2/64", "fe80::1/64", "127.0.0.1/8", "129.132.0.0/16")

func TestBlocked(t *testing.T) {
	for _, c := range []struct {
		to   string // address and port
		open bool
	}{
		{"93.184.216.34:443", true},
		{"1.1.1.1:53", true},
		{"8.8.8.8:1", true},
		{"9.255.255.255:80", true},
		{"11.0.0.0:80", true},
		{"172.15.255.255:80", true},
		{"172.32.0.0:80", true},
		{"192.167.255.255:80", true},
		{"192.169.0.0:80", true},
		{"100.63.255.255:80", true},
		{"100.128.0.0:80", true},
		{"169.253.255.255:80", true},
		{"169.255.0.0:80", true},
		{"198.17.255.255:80", true},
		{"198.20.0.0:80", true},
		{"223.255.255.255:80", true},
		{"128.0.0.1:80", true},
		{"168.63.129.15:80", true},
		{"45.60.71.1:80", true},
		{"129.133.0.1:80", true},
		{"[2606:4700:4700::1111]:443", true},
		{"[2a0b:1234:0:1::1]:443", true},
		{"[64:ff9b::5db8:d822]:443", true}, // 93.184.216.34 by NAT64
		{"[2001:200::1]:443", true},
		{"[::ffff:93.184.216.34]:443", true}, // as the machine dials 93.184.216.34

		{"0.0.0.0:80", false},
		{"0.1.2.3:80", false},
		{"10.0.0.1:80", false},
		{"10.255.255.255:80", false},
		{"172.16.0.1:80", false},
		{"172.31.255.255:80", false},
		{"192.168.0.1:80", false},
		{"192.168.255.255:80", false},
		{"127.0.0.1:80", false},
		{"127.255.255.255:80", false},
		{"169.254.169.254:80", false},
		{"169.254.0.0:80", false},
		{"100.64.0.1:80", false},
		{"100.127.255.255:80", false},
		{"100.100.100.200:80", false},
		{"168.63.129.16:80", false},
		{"192.0.0.192:80", false},
		{"192.0.2.1:80", false},
		{"198.51.100.1:80", false},
		{"203.0.113.1:80", false},
		{"198.18.0.1:80", false},
		{"198.19.255.255:80", false},
		{"192.88.99.1:80", false},
		{"224.0.0.1:80", false},
		{"239.255.255.250:1900", false},
		{"240.0.0.1:80", false},
		{"255.255.255.255:80", false},

		{"[::]:80", false},
		{"[::1]:80", false},
		{"[::2]:80", false},
		{"[::127.0.0.1]:80", false}, // IPv4-compatible
		{"[::93.184.216.34]:80", false},
		{"[::ffff:127.0.0.1]:80", false},
		{"[::ffff:10.0.0.1]:80", false},
		{"[::ffff:169.254.169.254]:80", false},
		{"[::ffff:0:7f00:1]:80", false}, // translated
		{"[64:ff9b::7f00:1]:80", false},
		{"[64:ff9b::a00:1]:80", false},
		{"[64:ff9b::a9fe:a9fe]:80", false},
		{"[64:ff9b::2d3c:4602]:80", false}, // 45.60.70.2 by NAT64
		{"[64:ff9b:1::5db8:d822]:80", false},
		{"[fd00:ec2::254]:80", false},
		{"[fc00::1]:80", false},
		{"[fdff::1]:80", false},
		{"[fe80::1]:80", false},
		{"[fe80::1%eth0]:80", false},
		{"[2606:4700::1%eth0]:80", false},
		{"[fec0::1]:80", false},
		{"[ff02::1]:80", false},
		{"[ff0e::1]:80", false},
		{"[2001::1]:80", false},
		{"[2001:2::1]:80", false},
		{"[2001:db8::1]:80", false},
		{"[2002:7f00:1::]:80", false},
		{"[2002:5db8:d822::1]:80", false},
		{"[3fff::1]:80", false},
		{"[4000::1]:80", false},
		{"[100::1]:80", false},
		{"[5f00::1]:80", false},

		// the machine's own
		{"45.60.70.1:443", false},
		{"45.60.70.2:443", false},
		{"45.60.70.255:443", false},
		{"[::ffff:45.60.70.1]:443", false},
		{"[2a0b:1234::1]:443", false},
		{"[2a0b:1234::ffff:ffff:ffff:ffff]:443", false},
		{"129.132.7.7:443", false},

		// ports
		{"93.184.216.34:25", false},
		{"[2606:4700:4700::1111]:25", false},
		{"93.184.216.34:0", false},
		{"93.184.216.34:587", true},
	} {
		to := netip.MustParseAddrPort(c.to)
		err := Blocked(to, home)
		if (err == nil) != c.open {
			t.Errorf("%s: %v, want open %v", c.to, err, c.open)
		}
		if err != nil && !errors.Is(err, ErrBlocked) {
			t.Errorf("%s: %v is not ErrBlocked", c.to, err)
		}
	}
	if Blocked(netip.AddrPort{}, nil) == nil {
		t.Error("no address is open")
	}
}

// FuzzBlocked holds what is open against the standard library's own view of
// addresses, in every form that an address can take.
func FuzzBlocked(f *testing.F) {
	for _, s := range []string{"93.184.216.34", "10.0.0.1", "::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:a00:1::", "fe80::1", "2a0b:1234::7"} {
		f.Add(netip.MustParseAddr(s).AsSlice(), uint16(443))
	}
	f.Fuzz(func(t *testing.T, raw []byte, port uint16) {
		addr, ok := netip.AddrFromSlice(raw)
		if !ok {
			t.Skip("no address has that length")
		}
		err := Blocked(netip.AddrPortFrom(addr, port), home)
		again := Blocked(netip.AddrPortFrom(addr.Unmap(), port), home)
		if (err == nil) != (again == nil) {
			t.Errorf("%s: %v mapped, %v plain", addr, err, again)
		}
		if err != nil {
			return
		}
		for _, a := range inside(addr) {
			if !a.IsGlobalUnicast() || a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || within(home, a) {
				t.Errorf("%s is open and stands for %s", addr, a)
			}
		}
		if port == 0 || port == portMail {
			t.Errorf("port %d is open", port)
		}
	})
}

// inside lists the addresses that one may stand for.
func inside(a netip.Addr) []netip.Addr {
	all := []netip.Addr{a.Unmap()}
	if b := a.As16(); nat64.Contains(a) {
		all = append(all, netip.AddrFrom4([4]byte(b[12:])))
	} else if b[0] == 0x20 && b[1] == 2 {
		all = append(all, netip.AddrFrom4([4]byte(b[2:6])))
	}
	return all
}

func TestRoutes(t *testing.T) {
	v4 := `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	014DA8C0	0003	0	0	0	00000000	0	0	0
tun0	00000080	0100080A	0003	0	0	0	00000080	0	0	0
eth0	004DA8C0	00000000	0001	0	0	0	00FFFFFF	0	0	0
tun0	00008481	0100080A	0003	0	0	0	0000FFFF	0	0	0
ppp0	01463C2D	00000000	0005	0	0	0	FFFFFFFF	0	0	0
`
	v6 := `2a0b1234000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000002 00000000 00000003     eth0
20000000000000000000000000000000 03 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000002 00000000 00000003     eth0
`
	own, err := routes(strings.NewReader(v4), nil, routeV4)
	if err != nil {
		t.Fatal(err)
	}
	own, err = routes(strings.NewReader(v6), own, routeV6)
	if err != nil {
		t.Fatal(err)
	}
	want := ranges("192.168.77.0/24", "129.132.0.0/16", "45.60.70.1/32", "2a0b:1234::/64")
	if len(own) != len(want) {
		t.Fatalf("%v, want %v", own, want)
	}
	for i := range want {
		if own[i] != want[i] {
			t.Errorf("%v, want %v", own[i], want[i])
		}
	}
	for _, bad := range []string{"eth0", "eth0 zz 0 0 0 0 0 00FFFFFF", "eth0 00000000 0 0 0 0 0 00FF00FF", "eth0 0000000000 0 0 0 0 0 00FFFFFF"} {
		if _, err := routes(strings.NewReader(bad+"\n"), nil, routeV4); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	for _, bad := range []string{"2a0b", "2a0b1234000000000000000000000000 81", "zz0b1234000000000000000000000000 40"} {
		if _, err := routes(strings.NewReader(bad+"\n"), nil, routeV6); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func FuzzRoutes(f *testing.F) {
	f.Add("eth0	004DA8C0	00000000	0001	0	0	0	00FFFFFF	0	0	0")
	f.Add("2a0b1234000000000000000000000000 40 00000000000000000000000000000000 00")
	f.Fuzz(func(t *testing.T, line string) {
		for _, parse := range []func(string) (netip.Prefix, error){routeV4, routeV6} {
			if p, err := parse(line); err == nil && !p.IsValid() {
				t.Errorf("%q gives %v", line, p)
			}
		}
	})
}

func TestOwn(t *testing.T) {
	own, err := Own()
	if err != nil {
		t.Fatal(err)
	}
	if err := Blocked(netip.MustParseAddrPort("93.184.216.34:80"), own); err != nil {
		t.Errorf("the internet is blocked: %v", err)
	}
	for _, p := range own {
		if !within(own, p.Addr()) {
			t.Errorf("%v is not within", p)
		}
	}
}

// TestUnknownOwn: what the machine is cannot be told, so nothing is allowed.
func TestUnknownOwn(t *testing.T) {
	d := dialer{own: func() ([]netip.Prefix, error) { return nil, errors.New("no") }}
	if _, err := d.dial(t.Context(), "tcp", netip.MustParseAddrPort("93.184.216.34:80")); !errors.Is(err, ErrBlocked) {
		t.Errorf("dialled: %v", err)
	}
}
