package content

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/ipfs/go-cid"
	car "github.com/ipld/go-car/v2"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/fluent/qp"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
)

// Bounds of a CAR, which comes from a stranger.
const (
	maxCARHeader  = 64 << 10                 // bytes of the header, some thousand roots
	maxCARSection = MaxBlockHard + maxCIDLen // of a block with its CID
	maxCARRoots   = 1024
	carBuffer     = 256 << 10
)

// ErrNotWhole says that part of a DAG is not in the store.
var ErrNotWhole = errors.New("the DAG is not whole")

// CAR is what a CAR held.
type CAR struct {
	Version uint64
	Roots   []cid.Cid // as CIDv1
	Blocks  uint64    // read, those that were here already among them
	Bytes   uint64    // of those blocks
}

// ExportCAR writes the DAG under root as a CARv1
// (https://ipld.io/specs/transport/car/carv1/): the root first, then depth
// first in the order of the links, each block once, as `ipfs dag export` does.
// The same root always gives the same bytes. All CIDs are written as CIDv1. A
// block that is not here is ErrNotFound, and what was written is then no whole
// CAR.
func ExportCAR(ctx context.Context, s *Store, root cid.Cid, w io.Writer, progress func(Progress)) (Size, error) {
	defer s.Hold(root)()
	x := &carWriter{ctx: ctx, s: s, w: bufio.NewWriterSize(w, carBuffer), progress: progress}
	err := x.write(root)
	if err == nil {
		err = x.w.Flush()
	}
	if err != nil {
		return x.size, fmt.Errorf("export %s: %w", root, err)
	}
	return x.size, nil
}

type carWriter struct {
	ctx      context.Context
	s        *Store
	w        *bufio.Writer
	progress func(Progress)
	buf      []byte
	head     []byte
	size     Size
	total    uint64
}

func (x *carWriter) write(root cid.Cid) error {
	r, err := refOf(root)
	if err != nil {
		return err
	}
	head, err := carHeader(r.cid())
	if err != nil {
		return err
	}
	if _, err := x.w.Write(head); err != nil {
		return err
	}
	seen := map[key]struct{}{}
	stack := []ref{r}
	for len(stack) > 0 {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if _, ok := seen[at.key]; ok {
			continue
		}
		seen[at.key] = struct{}{}
		links, err := x.block(at)
		if err != nil {
			return err
		}
		// A block is done when it is first met going down, so links to blocks
		// met before are left out, and what is still to come may repeat.
		for i := len(links) - 1; i >= 0; i-- {
			if _, ok := seen[links[i].ref.key]; !ok {
				stack = append(stack, links[i].ref)
			}
		}
		if len(seen)+len(stack) > maxDAGBlocks {
			return fmt.Errorf("%w: more than %d blocks and links", ErrTooLarge, maxDAGBlocks)
		}
	}
	return nil
}

// carHeader is the CARv1 header: a length, then dag-cbor of roots and version.
func carHeader(root cid.Cid) ([]byte, error) {
	n, err := qp.BuildMap(basicnode.Prototype.Map, 2, func(ma datamodel.MapAssembler) {
		qp.MapEntry(ma, "roots", qp.List(1, func(la datamodel.ListAssembler) {
			qp.ListEntry(la, qp.Link(cidlink.Link{Cid: root}))
		}))
		qp.MapEntry(ma, "version", qp.Int(1))
	})
	if err != nil {
		return nil, fmt.Errorf("CAR header: %w", err)
	}
	var body bytes.Buffer
	if err := dagcbor.Encode(n, &body); err != nil {
		return nil, fmt.Errorf("CAR header: %w", err)
	}
	return append(binary.AppendUvarint(nil, uint64(body.Len())), body.Bytes()...), nil
}

// block writes one section: the length of CID and bytes, the CID, the bytes.
func (x *carWriter) block(r ref) ([]link, error) {
	data, err := x.s.get(r, x.buf)
	if err != nil {
		return nil, err
	}
	x.buf = data[:cap(data)]
	links, err := linksOf(r, data)
	if err != nil {
		return nil, fmt.Errorf("block %s: %w", r, err)
	}
	c := r.cid().Bytes()
	x.head = append(binary.AppendUvarint(x.head[:0], uint64(len(c)+len(data))), c...)
	if _, err := x.w.Write(x.head); err != nil {
		return nil, err
	}
	if _, err := x.w.Write(data); err != nil {
		return nil, err
	}
	if x.size.Blocks == 0 {
		x.total = uint64(len(data))
		for _, l := range links {
			x.total = addCapped(x.total, l.hint)
		}
	}
	x.size.Blocks++
	x.size.Bytes += uint64(len(data))
	if x.progress != nil {
		x.progress(Progress{Phase: "exporting", Done: x.size.Bytes, Total: max(x.total, x.size.Bytes)})
	}
	return links, nil
}

// CAROptions configures ImportCAR.
type CAROptions struct {
	// MaxBytes bounds the bytes of all blocks; 0 is 1 TiB.
	MaxBytes uint64
	// Progress, if set, is called as blocks are in.
	Progress func(Progress)
}

// ImportCAR reads a CARv1 or CARv2 and puts its blocks, each verified, and
// makes them durable. It reads to the end of the CAR's data and no further. A
// CAR that ends early, that cannot be read or that has a block whose bytes do
// not match is refused with the block's number and its offset in the stream;
// the blocks before it stay, so that nothing that was good is lost. Roots that
// are not whole in the store afterwards are ErrNotWhole. Hold puts until the
// roots are kept by something else: see Store.HoldPuts.
func ImportCAR(ctx context.Context, s *Store, r io.Reader, o CAROptions) (CAR, error) {
	defer s.HoldPuts()()
	if o.MaxBytes == 0 {
		o.MaxBytes = 1 << 40
	}
	in := &carReader{ctx: ctx, s: s, o: o, src: &counter{r: bufio.NewReaderSize(r, carBuffer)}}
	err := in.read()
	if serr := s.Sync(); err == nil || !errors.Is(serr, ErrClosed) {
		err = errors.Join(err, serr)
	}
	if err == nil {
		err = in.checkRoots()
	}
	if err != nil {
		return in.out, fmt.Errorf("import CAR: %w", err)
	}
	return in.out, nil
}

type carReader struct {
	ctx context.Context
	s   *Store
	o   CAROptions
	src *counter
	out CAR
}

// read puts every block.
func (in *carReader) read() error {
	end, err := in.src.dataEnd()
	if err != nil {
		return err
	}
	br, err := car.NewBlockReader(in.src, car.MaxAllowedHeaderSize(maxCARHeader), car.MaxAllowedSectionSize(maxCARSection),
		car.WithTrustedCAR(true)) // the store verifies every block as it is put
	if err != nil {
		return fmt.Errorf("%w: no CAR header: %w", ErrMalformed, whole(err))
	}
	in.out.Version = br.Version
	if len(br.Roots) > maxCARRoots {
		return fmt.Errorf("%w: a CAR of %d roots; the limit is %d", ErrTooLarge, len(br.Roots), maxCARRoots)
	}
	for _, root := range br.Roots {
		c, err := Normalize(root)
		if err != nil {
			return fmt.Errorf("root of the CAR: %w", err)
		}
		in.out.Roots = append(in.out.Roots, c)
	}
	for {
		if err := in.ctx.Err(); err != nil {
			return err
		}
		at := in.src.n
		blk, err := br.Next()
		if errors.Is(err, io.EOF) {
			return in.ended(end)
		}
		if err != nil {
			return fmt.Errorf("block %d at offset %d: %w: %w", in.out.Blocks+1, at, ErrMalformed, whole(err))
		}
		if err := in.put(blk.Cid(), blk.RawData()); err != nil {
			return fmt.Errorf("block %d at offset %d: %w", in.out.Blocks+1, at, err)
		}
	}
}

// put stores one block and counts it.
func (in *carReader) put(c cid.Cid, data []byte) error {
	if in.out.Bytes+uint64(len(data)) > in.o.MaxBytes {
		return fmt.Errorf("%w: a CAR of more than %d bytes", ErrTooLarge, in.o.MaxBytes)
	}
	if err := in.s.Put(in.ctx, c, data); err != nil {
		return err
	}
	in.out.Blocks++
	in.out.Bytes += uint64(len(data))
	if in.o.Progress != nil {
		in.o.Progress(Progress{Phase: "importing", Done: in.src.n, Files: in.out.Blocks})
	}
	return nil
}

// ended checks that a CARv2 had all the data its header tells of.
func (in *carReader) ended(end uint64) error {
	if end > 0 && in.src.n < end {
		return fmt.Errorf("%w: the CAR ends at offset %d after %d blocks, where its header says %d: %w",
			ErrMalformed, in.src.n, in.out.Blocks, end, io.ErrUnexpectedEOF)
	}
	return nil
}

// checkRoots says which roots are not whole.
func (in *carReader) checkRoots() error {
	var errs []error
	for _, root := range in.out.Roots {
		have, total, complete, err := Missing(in.ctx, in.s, root)
		if err != nil {
			errs = append(errs, err)
		} else if !complete {
			errs = append(errs, fmt.Errorf("%w: root %s has %d of at least %d bytes here", ErrNotWhole, root, have, max(total, have+1)))
		}
	}
	return errors.Join(errs...)
}

// counter knows how far a stream has been read.
type counter struct {
	r *bufio.Reader
	n uint64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += uint64(n)
	return n, err
}

func (c *counter) ReadByte() (byte, error) {
	b, err := c.r.ReadByte()
	if err == nil {
		c.n++
	}
	return b, err
}

// dataEnd looks ahead for the header of a CARv2 and returns where its data
// ends, 0 for what is none.
func (c *counter) dataEnd() (uint64, error) {
	ahead, err := c.r.Peek(car.PragmaSize + car.HeaderSize)
	if err != nil || !bytes.Equal(ahead[:car.PragmaSize], car.Pragma) {
		return 0, nil //nolint:nilerr // whatever is wrong, reading it tells
	}
	var h car.Header
	if _, err := h.ReadFrom(bytes.NewReader(ahead[car.PragmaSize:])); err != nil {
		return 0, fmt.Errorf("%w: header of a CARv2: %w", ErrMalformed, err)
	}
	const most = 1 << 60
	if h.DataOffset > most || h.DataSize > most {
		return 0, fmt.Errorf("%w: a CARv2 whose header tells of %d bytes from offset %d on", ErrMalformed, h.DataSize, h.DataOffset)
	}
	return h.DataOffset + h.DataSize, nil
}
