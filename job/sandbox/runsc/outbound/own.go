package outbound

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Own lists the addresses of this machine's interfaces, the networks on them,
// and those that its routing table knows a way of its own to, as through a VPN.
// What it gives is good for one dial: interfaces come and go.
func Own() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("reading this machine's addresses: %w", err)
	}
	own := make([]netip.Prefix, 0, len(addrs)+8)
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			return nil, fmt.Errorf("reading this machine's addresses: %w", err)
		}
		own = append(own, p)
	}
	for _, t := range []struct {
		file  string
		parse func(string) (netip.Prefix, error)
	}{{"/proc/net/route", routeV4}, {"/proc/net/ipv6_route", routeV6}} {
		f, err := os.Open(t.file)
		if os.IsNotExist(err) {
			continue // a machine without that version
		}
		if err != nil {
			return nil, fmt.Errorf("reading this machine's routes: %w", err)
		}
		own, err = routes(f, own, t.parse)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", t.file, err)
		}
	}
	return own, nil
}

// The default route, or the two or four that some VPNs make of it, says nothing
// of where a network is.
const (
	defaultBits4 = 3
	defaultBits6 = 8
)

// routes appends the destinations of a routing table, the default ones excepted.
func routes(r io.Reader, own []netip.Prefix, parse func(string) (netip.Prefix, error)) ([]netip.Prefix, error) {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "Iface") || strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		p, err := parse(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("line %.200q: %w", lines.Text(), err)
		}
		if bits := p.Bits(); p.Addr().Is4() && bits > defaultBits4 || p.Addr().Is6() && bits > defaultBits6 {
			own = append(own, p)
		}
	}
	return own, lines.Err()
}

// routeV4 reads "eth0 0002A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0": numbers as
// the machine's own byte order has them, which is little-endian where this runs.
func routeV4(line string) (netip.Prefix, error) {
	f := strings.Fields(line)
	if len(f) < 8 {
		return netip.Prefix{}, strconv.ErrSyntax
	}
	dest, err := hex.DecodeString(f[1])
	if err != nil || len(dest) != 4 {
		return netip.Prefix{}, strconv.ErrSyntax
	}
	mask, err := hex.DecodeString(f[7])
	if err != nil || len(mask) != 4 {
		return netip.Prefix{}, strconv.ErrSyntax
	}
	ones, bits := net.IPv4Mask(mask[3], mask[2], mask[1], mask[0]).Size()
	if bits == 0 {
		return netip.Prefix{}, strconv.ErrSyntax
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{dest[3], dest[2], dest[1], dest[0]}), ones), nil
}

// routeV6 reads "fe80000000000000… 40 0000… 00 0000… 00000100 … eth0".
func routeV6(line string) (netip.Prefix, error) {
	f := strings.Fields(line)
	if len(f) < 2 {
		return netip.Prefix{}, strconv.ErrSyntax
	}
	dest, err := hex.DecodeString(f[0])
	if err != nil || len(dest) != 16 {
		return netip.Prefix{}, strconv.ErrSyntax
	}
	bits, err := strconv.ParseUint(f[1], 16, 8)
	if err != nil || bits > 128 {
		return netip.Prefix{}, strconv.ErrSyntax
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte(dest)), int(bits)), nil
}
