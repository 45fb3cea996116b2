package outbound

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
)

const (
	portNames    = 53
	maxQuestions = 64 // on their way at once
	maxServers   = 3  // as the C library takes of a resolv.conf
	answerTime   = 3 * time.Second
	maxResolv    = 64 << 10 // bytes of a resolv.conf
)

// namesByUDP answers questions until the flow ends.
func (n *Network) namesByUDP(in *gonet.UDPConn, f *flow) {
	buf := make([]byte, maxQuestion+1)
	for {
		k, err := in.Read(buf)
		if err != nil {
			return
		}
		f.touch()
		select {
		case n.dns <- struct{}{}:
		default:
			continue // it will ask again
		}
		msg := append([]byte(nil), buf[:k]...)
		n.work.Go(func() {
			defer func() { <-n.dns }()
			if a := n.answer("udp", msg); a != nil {
				_, _ = in.Write(a)
			}
		})
	}
}

// namesByTCP answers the questions of one connection in their order.
func (n *Network) namesByTCP(r *tcp.ForwarderRequest) {
	in := accept(r)
	if in == nil {
		return
	}
	f := &flow{kind: kindTCP, idle: idleAnswer, abort: in.ep.Abort}
	n.enter(f)
	defer n.drop(f)
	defer n.finish(in)
	for {
		msg, err := readFramed(in, maxQuestion)
		if err != nil {
			return
		}
		f.touch()
		select {
		case n.dns <- struct{}{}:
		case <-n.life.Done():
			return
		}
		a := n.answer("tcp", msg)
		<-n.dns
		if a == nil || writeFramed(in, a) != nil {
			return
		}
	}
}

func readFramed(r io.Reader, most int) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	k := int(binary.BigEndian.Uint16(size[:]))
	if k > most {
		return nil, errQuestion
	}
	msg := make([]byte, k)
	_, err := io.ReadFull(r, msg)
	return msg, err
}

func writeFramed(w io.Writer, msg []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, len(msg)+2), uint16(len(msg))), msg...)) //nolint:gosec // at most 64 KiB
	return err
}

// answer asks the machine's resolver. Nil is for what deserves none.
func (n *Network) answer(network string, msg []byte) []byte {
	q, err := parseQuestion(msg)
	if err != nil {
		if len(msg) < headerSize || msg[2]&(flagResponse>>8) != 0 {
			return nil
		}
		return question{id: binary.BigEndian.Uint16(msg)}.malformed()
	}
	blocked := func(a netip.Addr) bool { return n.dialer.allow(netip.AddrPortFrom(a, portNames)) != nil }
	if isLocal(q.text, blocked) {
		return q.says(codeNoName)
	}
	if n.Meter.exceeded() {
		return q.says(codeRefused)
	}
	for _, server := range servers(n.Resolv) {
		if a := n.askOne(network, server, q); a != nil {
			binary.BigEndian.PutUint16(a, q.id)
			return a
		}
		if n.life.Err() != nil {
			return nil
		}
	}
	return q.says(codeFailed)
}

// malformed is a refusal that repeats nothing.
func (q question) malformed() []byte {
	b := make([]byte, headerSize)
	binary.BigEndian.PutUint16(b, q.id)
	binary.BigEndian.PutUint16(b[2:], flagResponse|codeFormat)
	return b
}

// askOne asks one server, which may be of the provider's own network: a question
// in our own words is all that reaches it.
func (n *Network) askOne(network string, server netip.AddrPort, q question) []byte {
	ctx, cancel := context.WithTimeout(n.life, n.answerTime)
	defer cancel()
	conn, err := n.dialer.connect(ctx, network, server)
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	var id [2]byte
	_, _ = rand.Read(id[:]) // never fails
	number := binary.BigEndian.Uint16(id[:])
	msg := q.ask(number)
	n.Meter.Up(len(msg) + datagramCost)
	if network == "tcp" {
		if writeFramed(conn, msg) != nil {
			return nil
		}
	} else if _, err := conn.Write(msg); err != nil {
		return nil
	}
	for {
		a, err := readAnswer(network, conn)
		if err != nil {
			return nil
		}
		n.Meter.Down(len(a) + datagramCost)
		if q.answered(a, number) {
			return a
		}
	}
}

func readAnswer(network string, conn net.Conn) ([]byte, error) {
	if network == "tcp" {
		return readFramed(conn, 1<<16)
	}
	buf := make([]byte, 4<<10)
	k, err := conn.Read(buf)
	return buf[:k], err
}

// servers reads the machine's resolv.conf, each time: a laptop changes networks
// while a container runs. Without one it is the local machine's, as for the C
// library.
func servers(file string) []netip.AddrPort {
	var list []netip.AddrPort
	if f, err := os.Open(file); err == nil {
		list = parseResolv(io.LimitReader(f, maxResolv))
		_ = f.Close()
	}
	if len(list) == 0 {
		list = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), portNames)}
	}
	return list
}

func parseResolv(r io.Reader) (list []netip.AddrPort) {
	lines := bufio.NewScanner(r)
	for lines.Scan() && len(list) < maxServers {
		f := strings.Fields(lines.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			list = append(list, netip.AddrPortFrom(a, portNames))
		}
	}
	return list
}
