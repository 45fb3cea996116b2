package content

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"
)

// The bytes of the exchange. All numbers are unsigned LEB128 varints.
//
//	get/1 request:  count (1..512), then count times: length, CIDv1
//	dag/1 request:  length, CIDv1, most bytes of leaves wanted
//	answer:         groups, each one kind byte, 0 (blocks), 1 (wait), 2 (busy),
//	                3 (end) or 4 (packed), and for "blocks": count (1..512),
//	                count heads, the bytes of the blocks; for "packed" the same,
//	                but the bytes as one zstd frame (RFC 8878) with a window of
//	                at most 512 KiB, and its length before it, which is below theirs
//	head:           0 (don't have), 1 (left out), or 2 + the block's length,
//	                which is at most 2 MiB
//
// get/1 answers each CID with one head, in order, in as many groups as it
// likes, and takes requests until the asker closes its side. dag/1 answers with
// the blocks under the root, breadth first, each different block once, in the
// order of the links in their parents: all that link to others, and of the raw
// ones as many bytes as are wanted; then comes an "end" group. have/1 is in
// have.go.
const (
	groupBlocks = 0
	groupWait   = 1 // nothing yet: the stream waits for its turn
	groupBusy   = 2 // come again
	groupEnd    = 3
	groupPacked = 4

	headMissing = 0
	headLeftOut = 1
	headBlock   = 2

	maxAsk    = 512
	maxCIDLen = 64
	maxHead   = 4 // bytes of a head
	headRoom  = 1 + 2 + maxAsk*maxHead
)

// byteReader is what the decoders read from.
type byteReader interface {
	io.Reader
	io.ByteReader
}

func appendAsk(b []byte, refs []ref) []byte {
	b = binary.AppendUvarint(b, uint64(len(refs)))
	for _, r := range refs {
		b = appendCID(b, r)
	}
	return b
}

func appendCID(b []byte, r ref) []byte {
	c := r.cid().Bytes()
	b = binary.AppendUvarint(b, uint64(len(c)))
	return append(b, c...)
}

// readAsk reads a get/1 request; io.EOF says there is none.
func readAsk(r byteReader, into []ref) ([]ref, error) {
	n, err := readUvarint(r, maxAsk)
	if errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	if err != nil {
		return nil, broken("request", err)
	}
	if n == 0 {
		return nil, fmt.Errorf("%w: empty request", ErrProtocol)
	}
	into = into[:0]
	for range n {
		c, err := readCID(r)
		if err != nil {
			return nil, err
		}
		into = append(into, c)
	}
	return into, nil
}

func readCID(r byteReader) (ref, error) {
	n, err := readUvarint(r, maxCIDLen)
	if err != nil {
		return ref{}, broken("request", err)
	}
	var buf [maxCIDLen]byte
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return ref{}, broken("request", err)
	}
	c, err := cid.Cast(buf[:n])
	if err != nil {
		return ref{}, fmt.Errorf("%w: request: %w", ErrProtocol, err)
	}
	out, err := refOf(c)
	if err != nil {
		return ref{}, fmt.Errorf("%w: request: %w", ErrProtocol, err)
	}
	return out, nil
}

// readUvarint reads a varint of at most limit, in its shortest form. What is
// none is ErrTooLarge or ErrMalformed; other errors are the reader's, io.EOF
// only before the first byte.
func readUvarint(r io.ByteReader, limit uint64) (uint64, error) {
	var n uint64
	for shift := 0; ; shift += 7 {
		b, err := r.ReadByte()
		if err != nil {
			if shift > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, err
		}
		if shift > 56 || uint64(b&0x7f)<<shift > limit-n {
			return 0, fmt.Errorf("%w: a number where at most %d is allowed", ErrTooLarge, limit)
		}
		n |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if b == 0 && shift > 0 {
				return 0, fmt.Errorf("%w: a number not in its shortest form", ErrMalformed)
			}
			return n, nil
		}
	}
}

// whole turns the end of a stream in the midst of something into an error.
func whole(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// broken puts words to what kept something from being read. Only bytes that
// say something wrong break the protocol: a stream that ends, times out or is
// reset in the midst of it does not.
func broken(what string, err error) error {
	if errors.Is(err, ErrTooLarge) || errors.Is(err, ErrMalformed) {
		return fmt.Errorf("%w: %s: %w", ErrProtocol, what, err)
	}
	return fmt.Errorf("%s: %w", what, whole(err))
}

func appendDAGAsk(b []byte, r ref, leaves uint64) []byte {
	return binary.AppendUvarint(appendCID(b, r), leaves)
}

func readDAGAsk(r byteReader) (ref, uint64, error) {
	c, err := readCID(r)
	if err != nil {
		return ref{}, 0, err
	}
	leaves, err := readUvarint(r, 1<<62)
	if err != nil {
		return ref{}, 0, broken("request", err)
	}
	return c, leaves, nil
}

// appendGroup appends a group's head: all of it but the bytes of the blocks.
func appendGroup(b []byte, heads []uint32) []byte {
	b = binary.AppendUvarint(append(b, groupBlocks), uint64(len(heads)))
	for _, h := range heads {
		b = binary.AppendUvarint(b, uint64(h))
	}
	return b
}

// groupReader reads answers. The heads of a group are read at once, and the
// blocks' bytes by the caller; of a packed group as of one that is not.
type groupReader struct {
	br     *bufio.Reader
	heads  []uint32
	packed *unpacking // of the group being read, if it is packed
	unpack *unpacking // made for the first packed group
}

func newGroupReader(r io.Reader) *groupReader {
	return &groupReader{br: bufio.NewReaderSize(r, 16<<10)}
}

// next reads the head of the following group; heads are valid until the next
// call. There are none but in a group of blocks.
func (g *groupReader) next() (kind byte, heads []uint32, err error) {
	if err := g.endPacked(); err != nil {
		return 0, nil, err
	}
	for kind = groupWait; kind == groupWait; {
		if kind, err = g.br.ReadByte(); err != nil {
			return 0, nil, broken("answer", err)
		}
	}
	switch kind {
	case groupBusy, groupEnd:
		return kind, nil, nil
	case groupBlocks, groupPacked:
	default:
		return 0, nil, fmt.Errorf("%w: group of kind %d", ErrProtocol, kind)
	}
	n, err := readUvarint(g.br, maxAsk)
	if err != nil {
		return 0, nil, broken("answer", err)
	}
	if n == 0 {
		return 0, nil, fmt.Errorf("%w: empty group", ErrProtocol)
	}
	g.heads = g.heads[:0]
	for range n {
		h, err := readUvarint(g.br, headBlock+MaxBlockHard)
		if err != nil {
			return 0, nil, broken("answer", err)
		}
		g.heads = append(g.heads, uint32(h))
	}
	if kind == groupPacked {
		err = g.beginPacked()
	}
	return groupBlocks, g.heads, err
}

// read fills p with bytes of blocks.
func (g *groupReader) read(p []byte) error {
	if g.packed != nil {
		return g.packed.read(p)
	}
	if _, err := io.ReadFull(g.br, p); err != nil {
		return broken("block", err)
	}
	return nil
}
