package outbound

import (
	"errors"
	"fmt"
	"net/netip"
)

// ErrBlocked says that a container must not talk to an address or port.
var ErrBlocked = errors.New("blocked for containers")

// portMail is where mail servers listen for each other: open to a stranger's
// container it would make the provider's address a sender of spam.
const portMail = 25

// special are the ranges of version 4 that are not the public internet, and some
// that are and lead into a provider's own machine.
var special = ranges(
	"0.0.0.0/8",        // this network, unspecified
	"10.0.0.0/8",       // private
	"100.64.0.0/10",    // carrier-grade NAT, some clouds' metadata
	"127.0.0.0/8",      // loopback
	"168.63.129.16/32", // a cloud's metadata on a public address
	"169.254.0.0/16",   // link-local, metadata
	"172.16.0.0/12",    // private
	"192.0.0.0/24",     // protocol assignments, a cloud's metadata
	"192.0.2.0/24",     // documentation
	"192.88.99.0/24",   // relays of 6to4
	"192.168.0.0/16",   // private
	"198.18.0.0/15",    // benchmarking
	"198.51.100.0/24",  // documentation
	"203.0.113.0/24",   // documentation
	"224.0.0.0/4",      // multicast
	"240.0.0.0/4",      // reserved, broadcast
)

var (
	// global holds every public address of version 6.
	global = netip.MustParsePrefix("2000::/3")
	// special6 are the ranges in it that are something else: those that carry an
	// address of version 4 to a relay among them, as one of them may be private.
	special6 = ranges(
		"2001::/23",     // protocol assignments: Teredo, benchmarking, ORCHID
		"2001:db8::/32", // documentation
		"2002::/16",     // 6to4
		"3fff::/20",     // documentation
	)
	// nat64 carries an address of version 4 in its last four bytes. A machine
	// without version 4 reaches the public ones by it.
	nat64 = netip.MustParsePrefix("64:ff9b::/96")
)

func ranges(list ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(list))
	for i, s := range list {
		all[i] = netip.MustParsePrefix(s)
	}
	return all
}

// Blocked is nil for an address and port of the public internet; it wraps
// ErrBlocked, with the reason, for every other. own are the addresses and
// networks of the machine itself, which may be public and are blocked all the
// same. It is the only place that decides; every dial asks it.
func Blocked(to netip.AddrPort, own []netip.Prefix) error {
	addr := to.Addr()
	// ::ffff:a.b.c.d is a.b.c.d to the machine that dials it.
	plain := addr.Unmap().WithZone("")
	inner := plain
	if nat64.Contains(plain) {
		b := plain.As16()
		inner = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case !addr.IsValid():
		return fmt.Errorf("%w: no address", ErrBlocked)
	case addr.Zone() != "":
		return fmt.Errorf("%w: %s has a zone", ErrBlocked, addr)
	case to.Port() == 0:
		return fmt.Errorf("%w: port 0", ErrBlocked)
	case to.Port() == portMail:
		return fmt.Errorf("%w: port 25 sends mail in the provider's name", ErrBlocked)
	}
	if inner.Is4() && within(special, inner) || inner.Is6() && (!global.Contains(inner) || within(special6, inner)) {
		return fmt.Errorf("%w: %s is not of the public internet", ErrBlocked, addr)
	}
	if within(own, plain) || within(own, inner) {
		return fmt.Errorf("%w: %s is of the provider's own network", ErrBlocked, addr)
	}
	return nil
}

func within(list []netip.Prefix, addr netip.Addr) bool {
	for _, p := range list {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
