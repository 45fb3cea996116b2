package outbound

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// question is all that is taken from what a container asks its name server: the
// machine's own resolver is asked anew, in our words.
type question struct {
	id      uint16
	desired bool   // of recursion
	name    []byte // as on the wire, lower and upper case kept
	text    string // the same in dots, lower case, without the last
	kind    uint16
	edns    bool // it takes answers over 512 bytes by UDP
	secure  bool // it wants signatures
}

var errQuestion = errors.New("not a question that is answered here")

const (
	headerSize  = 12
	maxName     = 255
	maxLabel    = 63
	kindOPT     = 41
	classIN     = 1
	firstMeta   = 249 // kinds from here on are transfers and "any"
	lastMeta    = 255
	answerSize  = 1232 // bytes of an answer by UDP that no network breaks up
	maxQuestion = headerSize + maxName + 4 + 11 + 512

	codeFormat   = 1
	codeFailed   = 2
	codeNoName   = 3
	codeRefused  = 5
	flagResponse = 1 << 15
	flagTrunc    = 1 << 9
	flagDesired  = 1 << 8
	flagHere     = 1 << 7
	flagSecure   = 1 << 15 // of an OPT record's time to live
)

// parseQuestion reads one plain question of the internet's class, with at most
// an OPT record after it.
func parseQuestion(msg []byte) (question, error) {
	var q question
	if len(msg) < headerSize || len(msg) > maxQuestion {
		return q, errQuestion
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	counts := [4]uint16{}
	for i := range counts {
		counts[i] = binary.BigEndian.Uint16(msg[4+2*i:])
	}
	const opcodes = 0xf << 11
	if flags&(flagResponse|opcodes) != 0 || counts[0] != 1 || counts[1] != 0 || counts[2] != 0 || counts[3] > 1 {
		return q, errQuestion
	}
	q.id, q.desired = binary.BigEndian.Uint16(msg), flags&flagDesired != 0
	text, rest, ok := parseName(msg[headerSize:])
	if !ok || len(rest) < 4 {
		return q, errQuestion
	}
	q.name, q.text = msg[headerSize:len(msg)-len(rest)], text
	q.kind = binary.BigEndian.Uint16(rest)
	if class := binary.BigEndian.Uint16(rest[2:]); class != classIN || q.kind >= firstMeta && q.kind <= lastMeta || q.kind == kindOPT || q.kind == 0 {
		return q, errQuestion
	}
	if counts[3] == 0 {
		return q, nil
	}
	// root name, OPT, size, extended flags, length
	opt := rest[4:]
	if len(opt) < 11 || opt[0] != 0 || binary.BigEndian.Uint16(opt[1:]) != kindOPT {
		return q, errQuestion
	}
	q.edns, q.secure = true, binary.BigEndian.Uint16(opt[7:])&flagSecure != 0
	return q, nil
}

// parseName reads a name without compression.
func parseName(b []byte) (text string, rest []byte, ok bool) {
	var labels []string
	size := 0
	for {
		if len(b) == 0 {
			return "", nil, false
		}
		n := int(b[0])
		if size += n + 1; n > maxLabel || len(b) < n+1 || size > maxName {
			return "", nil, false
		}
		if n == 0 {
			return strings.ToLower(strings.Join(labels, ".")), b[1:], true
		}
		labels = append(labels, string(b[1:n+1]))
		b = b[n+1:]
	}
}

// ask is the question in our words.
func (q question) ask(id uint16) []byte {
	b := q.head(id, flagDesired, 0)
	if !q.edns {
		return b
	}
	b[headerSize-1] = 1 // one additional record
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, kindOPT)
	b = binary.BigEndian.AppendUint16(b, answerSize)
	var extended uint32
	if q.secure {
		extended = flagSecure
	}
	b = binary.BigEndian.AppendUint32(b, extended)
	return binary.BigEndian.AppendUint16(b, 0)
}

func (q question) head(id uint16, flags, code uint16) []byte {
	b := make([]byte, headerSize, headerSize+len(q.name)+4+11)
	binary.BigEndian.PutUint16(b, id)
	binary.BigEndian.PutUint16(b[2:], flags|code)
	binary.BigEndian.PutUint16(b[4:], 1)
	b = append(b, q.name...)
	b = binary.BigEndian.AppendUint16(b, q.kind)
	return binary.BigEndian.AppendUint16(b, classIN)
}

// says is an answer without records, for that reason.
func (q question) says(code uint16) []byte {
	flags := uint16(flagResponse | flagHere)
	if q.desired {
		flags |= flagDesired
	}
	return q.head(q.id, flags, code)
}

// answered says whether msg answers what was asked by that id.
func (q question) answered(msg []byte, id uint16) bool {
	if len(msg) < headerSize || binary.BigEndian.Uint16(msg) != id || binary.BigEndian.Uint16(msg[2:])&flagResponse == 0 || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return false
	}
	text, rest, ok := parseName(msg[headerSize:])
	return ok && text == q.text && len(rest) >= 4 && binary.BigEndian.Uint16(rest) == q.kind && binary.BigEndian.Uint16(rest[2:]) == classIN
}

// localNames end what only the provider's own network knows.
var localNames = []string{"local", "localhost", "localdomain", "lan", "internal", "intranet", "private", "home", "corp", "home.arpa"}

// isLocal says whether a name is one of the provider's network: one without a
// dot, one of its own domains, or a reverse name that blocked says it has.
func isLocal(name string, blocked func(netip.Addr) bool) bool {
	if name == "" {
		return false // the root of all names
	}
	if !strings.Contains(name, ".") {
		// The public top-level domains have name servers and nothing else of use.
		return true
	}
	if slices.ContainsFunc(localNames, func(l string) bool { return strings.HasSuffix(name, "."+l) }) {
		return true
	}
	addr, ok := reversed(name)
	return ok && blocked(addr)
}

// reversed gives the address that a name under in-addr.arpa or ip6.arpa stands
// for; what the name leaves open is zero.
func reversed(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		var a [4]byte
		labels := strings.Split(s, ".")
		slices.Reverse(labels)
		for i, l := range labels {
			n, err := strconv.ParseUint(l, 10, 8)
			if err != nil || i >= len(a) {
				return netip.Addr{}, false
			}
			a[i] = byte(n)
		}
		return netip.AddrFrom4(a), true
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok {
		return netip.Addr{}, false
	}
	var a [16]byte
	labels := strings.Split(s, ".")
	slices.Reverse(labels)
	for i, l := range labels {
		n, err := strconv.ParseUint(l, 16, 4)
		if err != nil || i >= 2*len(a) {
			return netip.Addr{}, false
		}
		a[i/2] |= byte(n) << (4 * (1 - i%2))
	}
	return netip.AddrFrom16(a), true
}
