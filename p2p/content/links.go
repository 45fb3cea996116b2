package content

import (
	"context"
	"errors"
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/datamodel"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	"github.com/ipld/go-ipld-prime/traversal"
	"google.golang.org/protobuf/encoding/protowire"
)

// Bounds on what a DAG from a stranger may make us do.
const (
	maxDAGBlocks = 4 << 20  // different blocks visited in one walk
	cborBudget   = 64 << 20 // go-ipld-prime's measure of one block's nodes
	cborDepth    = 32
)

// link is a reference to a child block. hint is how many bytes the parent says
// are under it, 0 if it does not say; it may lie.
type link struct {
	ref  ref
	hint uint64
}

// linksOf returns the links in a block's bytes, in their order.
func linksOf(r ref, data []byte) ([]link, error) {
	switch r.codec {
	case codecPB:
		return linksPB(data)
	case codecCBOR:
		return linksCBOR(data)
	default:
		return nil, nil
	}
}

// linksPB reads the links of a dag-pb node: repeated field 2 of PBNode, each a
// PBLink of Hash = 1, Name = 2, Tsize = 3 (https://ipld.io/specs/codecs/dag-pb/spec/).
func linksPB(data []byte) ([]link, error) {
	var links []link
	err := eachField(data, func(num protowire.Number, typ protowire.Type, v []byte, _ uint64) error {
		if num != 2 {
			return nil
		}
		if typ != protowire.BytesType {
			return fmt.Errorf("%w: dag-pb links field of wire type %d", ErrMalformed, typ)
		}
		l, err := linkPB(v)
		links = append(links, l)
		return err
	})
	return links, err
}

func linkPB(data []byte) (link, error) {
	var l link
	named := false
	err := eachField(data, func(num protowire.Number, typ protowire.Type, v []byte, n uint64) error {
		switch {
		case num == 1 && typ == protowire.BytesType:
			c, err := cid.Cast(v)
			if err != nil {
				return fmt.Errorf("%w: dag-pb link: %w", ErrMalformed, err)
			}
			l.ref, err = refOf(c)
			named = true
			return err
		case num == 3 && typ == protowire.VarintType:
			l.hint = n
		}
		return nil
	})
	if err == nil && !named {
		err = fmt.Errorf("%w: dag-pb link without a hash", ErrMalformed)
	}
	return l, err
}

// eachField calls f for each field of a protobuf message.
func eachField(data []byte, f func(num protowire.Number, typ protowire.Type, v []byte, n uint64) error) error {
	for len(data) > 0 {
		num, typ, n := protowire.ConsumeTag(data)
		if n < 0 {
			return fmt.Errorf("%w: dag-pb: %w", ErrMalformed, protowire.ParseError(n))
		}
		data = data[n:]
		var v []byte
		var u uint64
		switch typ {
		case protowire.BytesType:
			v, n = protowire.ConsumeBytes(data)
		case protowire.VarintType:
			u, n = protowire.ConsumeVarint(data)
		default:
			n = protowire.ConsumeFieldValue(num, typ, data)
		}
		if n < 0 {
			return fmt.Errorf("%w: dag-pb: %w", ErrMalformed, protowire.ParseError(n))
		}
		data = data[n:]
		if err := f(num, typ, v, u); err != nil {
			return err
		}
	}
	return nil
}

// linksCBOR returns every link in a dag-cbor block. In a layer map, and in an
// image root, a link comes with the size beside it.
func linksCBOR(data []byte) ([]link, error) {
	n, err := decodeCBOR(data)
	if err != nil {
		return nil, err
	}
	if links, ok := hintedLinks(n); ok {
		return links, nil
	}
	found, err := traversal.SelectLinks(n)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	links := make([]link, 0, len(found))
	for _, f := range found {
		r, err := refOfLink(f)
		if err != nil {
			return nil, err
		}
		links = append(links, link{ref: r})
	}
	return links, nil
}

func refOfLink(l datamodel.Link) (ref, error) {
	cl, ok := l.(cidlink.Link)
	if !ok {
		return ref{}, fmt.Errorf("%w: link of type %T", ErrMalformed, l)
	}
	return refOf(cl.Cid)
}

// decodeCBOR reads a dag-cbor block, bounded in depth and memory.
func decodeCBOR(data []byte) (datamodel.Node, error) {
	nb := basicnode.Prototype.Any.NewBuilder()
	opt := dagcbor.DecodeOptions{AllowLinks: true, AllocationBudget: cborBudget, MaxDepth: cborDepth}
	if err := opt.Decode(nb, newByteReader(data)); err != nil {
		return nil, fmt.Errorf("%w: dag-cbor: %w", ErrMalformed, err)
	}
	return nb.Build(), nil
}

// Size is what a DAG weighs.
type Size struct {
	Blocks uint64 // different blocks
	Bytes  uint64 // their bytes, each block once
}

// DAGSize weighs the DAG under root. A missing block is ErrNotFound.
func DAGSize(ctx context.Context, s *Store, root cid.Cid) (Size, error) {
	var sz Size
	err := s.walk(ctx, root, func(l link, n int, here bool) error {
		if !here {
			return fmt.Errorf("size of %s: %s: %w", root, l.ref, ErrNotFound)
		}
		sz.Blocks++
		sz.Bytes += uint64(n)
		return nil
	})
	return sz, err
}

// Missing says how many bytes of the DAG under root are here, how many it has
// in all, and whether nothing is missing. What is not here is counted by what
// its parents say of it; without the root block all is 0.
func Missing(ctx context.Context, s *Store, root cid.Cid) (have, total uint64, complete bool, err error) {
	complete = true
	var missing uint64
	err = s.walk(ctx, root, func(l link, n int, here bool) error {
		if here {
			have += uint64(n)
			return nil
		}
		complete = false
		missing = addCapped(missing, l.hint)
		return nil
	})
	return have, addCapped(have, missing), complete, err
}

// addCapped adds two sizes of which a stranger may have named one.
func addCapped(a, b uint64) uint64 {
	const limit = 1 << 60
	return min(a, limit) + min(b, limit)
}

// walk visits every different block under root once, parents first. Blocks
// that are not here are visited too, but not what is under them. A block may be
// named with several codecs: its links count by each, its bytes once.
func (s *Store) walk(ctx context.Context, root cid.Cid, visit func(l link, n int, here bool) error) error {
	r, err := refOf(root)
	if err != nil {
		return err
	}
	queue := []link{{ref: r}}
	seen := codecSet{}
	seen.add(r)
	for len(queue) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		l := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		n, here, links, err := s.look(l.ref)
		if err != nil {
			return err
		}
		if seen.visit(l.ref.key) {
			if err := visit(l, n, here); err != nil {
				return err
			}
		}
		for i := len(links) - 1; i >= 0; i-- {
			if !seen.add(links[i].ref) {
				continue
			}
			if len(seen) > maxDAGBlocks {
				return fmt.Errorf("DAG %s: %w: more than %d blocks", root, ErrTooLarge, maxDAGBlocks)
			}
			queue = append(queue, links[i])
		}
	}
	return nil
}

// codecSet says by which codecs blocks were met, a bit for each.
type codecSet map[key]uint8

// add says whether a block must be looked at: it was not met before, or only
// by another codec, and may have links by this one.
func (c codecSet) add(r ref) bool {
	had, bit := c[r.key], uint8(1)<<r.codec
	if had&bit != 0 || had != 0 && r.codec == codecRaw {
		return false
	}
	c[r.key] = had | bit
	return true
}

// visited is the bit beside those of the codecs.
const visited = 1 << 7

// visit says whether a block is visited for the first time.
func (c codecSet) visit(k key) bool {
	had := c[k]
	c[k] = had | visited
	return had&visited == 0
}

// look returns a block's size and links, or that it is not here.
func (s *Store) look(r ref) (n int, here bool, links []link, err error) {
	if r.codec == codecRaw {
		n, here = s.size(r.key)
		return n, here, nil, nil
	}
	data, err := s.read(r, nil, false)
	if errors.Is(err, ErrNotFound) {
		return 0, false, nil, nil
	}
	if err != nil {
		return 0, false, nil, err
	}
	links, err = linksOf(r, data)
	if err != nil {
		return 0, false, nil, fmt.Errorf("block %s: %w", r, err)
	}
	return len(data), true, links, nil
}
