package node

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/lumbung-net/lumbung/job/sandbox"
	"github.com/lumbung-net/lumbung/node/api"
	"github.com/lumbung-net/lumbung/protocol"
)

// A port stream is a signed request, one byte of answer, and then the bytes of
// the connection, each direction ending by itself.
const (
	portConnected = byte(0)
	portRefused   = byte(1) // nothing listens there
	portNoRoom    = byte(2) // the container runs no more, or cannot be reached
)

// portStart is how long the beginning of a port stream may take.
const portStart = 20 * time.Second

// Connect implements api.Backend.
func (b backend) Connect(ctx context.Context, ref string, task int, port uint16, accept func() (api.Half, error)) error {
	j, err := b.n.findJob(ctx, ref)
	if err != nil {
		return err
	}
	far, err := b.n.connect(ctx, j.ID, task, port)
	if err != nil {
		return err
	}
	near, err := accept()
	if err != nil {
		_ = far.Reset()
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = far.Reset() })
	defer stop()
	sandbox.Join(near, far)
	return nil
}

// connect opens a connection to a port of a task's container.
func (n *Node) connect(ctx context.Context, id string, task int, port uint16) (sandbox.Conn, error) {
	// Whether it runs the provider knows best: a line of output may be here before
	// the heartbeat that tells of its start.
	c, ok := n.renter.LeaseOf(id, task)
	if !ok {
		return nil, notRunning(id, task)
	}
	to, err := peer.Decode(c.Provider)
	if err != nil {
		return nil, err
	}
	st, err := n.openPort(ctx, to, c.ID, port)
	if err != nil {
		return nil, fmt.Errorf("port %d of task %d of job %s at peer %s: %w", port, task, id, to, err)
	}
	return st, nil
}

func notRunning(id string, task int) error {
	return &api.Error{
		Status: http.StatusConflict, Code: "not_running", Detail: fmt.Sprintf("task %d of job %s has no running container", task, id),
		Remedy: "`lumbung inspect " + id + "` shows where it stands", Retryable: true,
	}
}

// openPort does the renter's side of the beginning of a port stream.
func (n *Node) openPort(ctx context.Context, to peer.ID, lease protocol.MsgID, port uint16) (network.Stream, error) {
	req, err := protocol.Sign(n.signer, &protocol.PortRequest{LeaseId: lease[:], AtMs: n.now().UnixMilli(), Port: uint32(port)})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, portStart)
	defer cancel()
	st, err := n.host.OpenStream(ctx, to, routePort)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = st.Reset() })
	err = askPort(st, req.Raw)
	if !stop() {
		err = errors.Join(err, context.Cause(ctx))
	}
	if err != nil {
		_ = st.Reset()
		return nil, err
	}
	return st, nil
}

func askPort(st io.ReadWriter, req []byte) error {
	if _, err := st.Write(append(binary.AppendUvarint(nil, uint64(len(req))), req...)); err != nil {
		return err
	}
	var a [1]byte
	if _, err := io.ReadFull(st, a[:]); err != nil {
		return err
	}
	switch a[0] {
	case portConnected:
		return nil
	case portRefused:
		return &api.Error{
			Status: http.StatusBadGateway, Code: "not_listening", Detail: "nothing in the container listens there", Retryable: true,
			Remedy: "look with `lumbung logs` whether the program is up, and on which port it listens",
		}
	}
	return &api.Error{
		Status: http.StatusBadGateway, Code: "port_closed", Detail: "the provider cannot reach into the container", Retryable: true,
		Remedy: "see with `lumbung ps` whether the task still runs, and try again",
	}
}

// handlePort connects a renter to a port of its container.
func (n *Node) handlePort(ctx context.Context, from peer.ID, st network.Stream) error {
	_ = st.SetReadDeadline(time.Now().Add(portStart))
	r := bufio.NewReader(st)
	req, err := readSigned[*protocol.PortRequest](n, r, from)
	if err != nil {
		return err
	}
	_ = st.SetReadDeadline(time.Time{})
	lease, err := protocol.ParseMsgID(req.GetLeaseId())
	if err != nil {
		return err
	}
	dialing, cancel := context.WithTimeout(ctx, portStart)
	defer cancel()
	conn, err := n.provider.Connect(dialing, from, lease, uint16(req.GetPort())) //nolint:gosec // validated
	switch {
	case errors.Is(err, protocol.ErrElsewhere):
		return err
	case errors.Is(err, sandbox.ErrNotListening):
		return sayNo(st, portRefused)
	case err != nil:
		n.log.Info("port not reached", "peer", from, "lease", lease.Short(), "err", err)
		return sayNo(st, portNoRoom)
	}
	if _, err := st.Write([]byte{portConnected}); err != nil {
		_ = conn.Reset()
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = st.Reset(); _ = conn.Reset() })
	defer stop()
	sandbox.Join(buffered{st, r}, conn)
	return nil
}

func sayNo(st network.Stream, why byte) error {
	_, err := st.Write([]byte{why})
	return err
}

// buffered is a stream of which some was read ahead.
type buffered struct {
	network.Stream
	r io.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// readSigned reads a length and then the signed message that opens a stream.
func readSigned[M protocol.Message](n *Node, r *bufio.Reader, from peer.ID) (M, error) {
	var none M
	size, err := binary.ReadUvarint(r)
	if err != nil {
		return none, err
	}
	if most := protocol.MaxSize(none.Kind()); size > uint64(most) {
		return none, fmt.Errorf("%s of %d bytes, over %d: %w", none.Kind(), size, most, protocol.ErrTooLarge)
	}
	raw := make([]byte, size)
	if _, err := io.ReadFull(r, raw); err != nil {
		return none, err
	}
	req, err := protocol.Open[M](n.cfg.Network, raw, n.now())
	if err != nil {
		return none, err
	}
	if req.From != from {
		return none, fmt.Errorf("%s of %s brought by %s: %w", none.Kind(), req.From, from, protocol.ErrBlame)
	}
	return req.Msg, nil
}
