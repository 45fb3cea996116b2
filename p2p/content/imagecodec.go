package content

import (
	"bytes"
	"fmt"
	"io"

	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/fluent/qp"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
)

// An image root is the dag-cbor map
//
//	{kind: "lumbung/image", v: 1, platform: "linux/amd64",
//	 config: &raw, manifest: &raw, layers: [[diffID, size, &map], …]}
//
// and a layer map is one of
//
//	{kind: "lumbung/layer", v: 1, diff: diffID, size: n, chunks: [[&raw, size], …]}
//	{kind: "lumbung/layer", v: 1, diff: diffID, size: n, parts:  [[&part, size], …]}
//
// where a part is {kind: "lumbung/chunks", v: 1, chunks: [[&raw, size], …]}. A map may
// hold toc: [[&raw, size], …], the layer's table of contents (see toc.go), and a
// root first: [bytes, …], files that a container reads first. diffID is
// the 32 bytes of the sha2-256 of the uncompressed layer tar; sizes are in
// bytes of that tar. Keys that are not known are passed over, so that later
// versions can say more without breaking earlier ones.
const (
	kindImage  = "lumbung/image"
	kindLayer  = "lumbung/layer"
	kindChunks = "lumbung/chunks"

	maxLayers   = 512
	partChunks  = 4096     // chunks listed in one block: about 1 GiB of tar
	maxParts    = 1 << 13  // parts of one layer: about 8 TiB
	maxLayerLen = 16 << 40 // bytes of one layer
	maxFirst    = 256      // files named as read first
)

// sized is a link with the bytes of tar under it.
type sized struct {
	ref  ref
	size uint64
}

type layerRef struct {
	diff key
	size uint64
	mp   ref
}

type imageRoot struct {
	platform string
	config   ref
	manifest ref
	layers   []layerRef
	first    []string // paths, without a slash in front
}

type layerMap struct {
	diff   key
	size   uint64
	chunks []sized // or
	parts  []sized
	toc    []sized // nil where there is none
}

func newByteReader(data []byte) io.Reader { return bytes.NewReader(data) }

// encodeMap makes a dag-cbor block of a map.
func encodeMap(build func(datamodel.MapAssembler)) ([]byte, ref, error) {
	n, err := qp.BuildMap(basicnode.Prototype.Map, -1, build)
	if err != nil {
		return nil, ref{}, fmt.Errorf("make block: %w", err)
	}
	var buf bytes.Buffer
	if err := dagcbor.Encode(n, &buf); err != nil {
		return nil, ref{}, fmt.Errorf("make block: %w", err)
	}
	r := rawRef(buf.Bytes())
	r.codec = codecCBOR
	return buf.Bytes(), r, nil
}

func head(ma datamodel.MapAssembler, kind string) {
	qp.MapEntry(ma, "kind", qp.String(kind))
	qp.MapEntry(ma, "v", qp.Int(1))
}

func linkTo(r ref) qp.Assemble { return qp.Link(cidlink.Link{Cid: r.cid()}) }

func sizedList(list []sized) qp.Assemble {
	return qp.List(int64(len(list)), func(la datamodel.ListAssembler) {
		for _, c := range list {
			qp.ListEntry(la, qp.List(2, func(la datamodel.ListAssembler) {
				qp.ListEntry(la, linkTo(c.ref))
				qp.ListEntry(la, qp.Int(int64(c.size)))
			}))
		}
	})
}

func (m imageRoot) encode() ([]byte, ref, error) {
	return encodeMap(func(ma datamodel.MapAssembler) {
		head(ma, kindImage)
		qp.MapEntry(ma, "platform", qp.String(m.platform))
		qp.MapEntry(ma, "config", linkTo(m.config))
		qp.MapEntry(ma, "manifest", linkTo(m.manifest))
		qp.MapEntry(ma, "layers", qp.List(int64(len(m.layers)), func(la datamodel.ListAssembler) {
			for _, l := range m.layers {
				qp.ListEntry(la, qp.List(3, func(la datamodel.ListAssembler) {
					qp.ListEntry(la, qp.Bytes(l.diff[:]))
					qp.ListEntry(la, qp.Int(int64(l.size)))
					qp.ListEntry(la, linkTo(l.mp))
				}))
			}
		}))
		if len(m.first) > 0 {
			qp.MapEntry(ma, "first", qp.List(int64(len(m.first)), func(la datamodel.ListAssembler) {
				for _, name := range m.first {
					qp.ListEntry(la, qp.Bytes([]byte(name)))
				}
			}))
		}
	})
}

func (m layerMap) encode() ([]byte, ref, error) {
	return encodeMap(func(ma datamodel.MapAssembler) {
		head(ma, kindLayer)
		qp.MapEntry(ma, "diff", qp.Bytes(m.diff[:]))
		qp.MapEntry(ma, "size", qp.Int(int64(m.size)))
		if m.parts != nil {
			qp.MapEntry(ma, "parts", sizedList(m.parts))
		} else {
			qp.MapEntry(ma, "chunks", sizedList(m.chunks))
		}
		if m.toc != nil {
			qp.MapEntry(ma, "toc", sizedList(m.toc))
		}
	})
}

func encodeChunks(chunks []sized) ([]byte, ref, error) {
	return encodeMap(func(ma datamodel.MapAssembler) {
		head(ma, kindChunks)
		qp.MapEntry(ma, "chunks", sizedList(chunks))
	})
}

// fields reads a decoded block, keeping the first thing that is wrong.
type fields struct {
	n   datamodel.Node
	err error
}

func readBlock(data []byte, kind string) *fields {
	n, err := decodeCBOR(data)
	f := &fields{n: n, err: err}
	if err == nil {
		if k := f.str("kind"); f.err == nil && k != kind {
			f.fail("it is a %.40q, not a %s", k, kind)
		}
		if v := f.num("v", 1<<16); f.err == nil && v != 1 {
			f.fail("version %d is newer than this program", v)
		}
	}
	return f
}

func (f *fields) fail(format string, args ...any) {
	if f.err == nil {
		f.err = fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
	}
}

func (f *fields) get(name string) datamodel.Node {
	if f.err != nil {
		return nil
	}
	if f.n.Kind() != datamodel.Kind_Map {
		f.fail("no map")
		return nil
	}
	v, err := f.n.LookupByString(name)
	if err != nil {
		f.fail("no %q", name)
		return nil
	}
	return v
}

func (f *fields) str(name string) string {
	n := f.get(name)
	if n == nil {
		return ""
	}
	s, err := n.AsString()
	if err != nil || len(s) > 256 {
		f.fail("%q is no short text", name)
	}
	return s
}

func (f *fields) num(name string, limit uint64) uint64 {
	return f.asNum(f.get(name), limit, name)
}

func (f *fields) asNum(n datamodel.Node, limit uint64, name string) uint64 {
	if n == nil {
		return 0
	}
	i, err := n.AsInt()
	if err != nil || i < 0 || uint64(i) > limit {
		f.fail("%s is no number up to %d", name, limit)
		return 0
	}
	return uint64(i)
}

func (f *fields) asKey(n datamodel.Node, name string) (k key) {
	if n == nil {
		return k
	}
	b, err := n.AsBytes()
	if err != nil || len(b) != len(k) {
		f.fail("%s is no digest", name)
		return k
	}
	return key(b)
}

func (f *fields) asRef(n datamodel.Node, want codec, name string) ref {
	if n == nil {
		return ref{}
	}
	l, err := n.AsLink()
	if err != nil {
		f.fail("%s is no link", name)
		return ref{}
	}
	r, err := refOfLink(l)
	if err != nil || r.codec != want {
		f.fail("%s is no link to a block of the right codec", name)
		return ref{}
	}
	return r
}

// list returns the entries of a list of lists of the given width.
func (f *fields) list(name string, limit int64, width int64) [][]datamodel.Node {
	n := f.get(name)
	if n == nil {
		return nil
	}
	if n.Kind() != datamodel.Kind_List || n.Length() > limit {
		f.fail("%q is no list of at most %d", name, limit)
		return nil
	}
	out := make([][]datamodel.Node, 0, n.Length())
	for it := n.ListIterator(); !it.Done(); {
		_, e, err := it.Next()
		if err != nil || e.Kind() != datamodel.Kind_List || e.Length() != width {
			f.fail("%q has an entry that is no list of %d", name, width)
			return nil
		}
		row := make([]datamodel.Node, width)
		for i := range row {
			if row[i], err = e.LookupByIndex(int64(i)); err != nil {
				f.fail("%q: %v", name, err)
				return nil
			}
		}
		out = append(out, row)
	}
	return out
}

func (f *fields) sized(name string, limit int64, each uint64, want codec) []sized {
	rows := f.list(name, limit, 2)
	out := make([]sized, 0, len(rows))
	for _, row := range rows {
		out = append(out, sized{f.asRef(row[0], want, name), f.asNum(row[1], each, name)})
	}
	return out
}

func decodeImageRoot(data []byte) (imageRoot, error) {
	f := readBlock(data, kindImage)
	m := imageRoot{
		platform: f.str("platform"),
		config:   f.asRef(f.get("config"), codecRaw, "config"),
		manifest: f.asRef(f.get("manifest"), codecRaw, "manifest"),
	}
	for _, row := range f.list("layers", maxLayers, 3) {
		m.layers = append(m.layers, layerRef{
			diff: f.asKey(row[0], "diff id"),
			size: f.asNum(row[1], maxLayerLen, "layer size"),
			mp:   f.asRef(row[2], codecCBOR, "layer map"),
		})
	}
	if f.err == nil && hasKey(f.n, "first") {
		m.first = f.paths("first", maxFirst)
	}
	if f.err != nil {
		return imageRoot{}, fmt.Errorf("image root: %w", f.err)
	}
	return m, nil
}

// paths reads a list of short byte strings.
func (f *fields) paths(name string, limit int64) []string {
	n := f.get(name)
	if n == nil {
		return nil
	}
	if n.Kind() != datamodel.Kind_List || n.Length() > limit {
		f.fail("%q is no list of at most %d", name, limit)
		return nil
	}
	out := make([]string, 0, n.Length())
	for it := n.ListIterator(); !it.Done(); {
		_, e, err := it.Next()
		if err != nil {
			f.fail("%q: %v", name, err)
			return nil
		}
		b, err := e.AsBytes()
		if err != nil || len(b) > maxPathLen {
			f.fail("%q has an entry that is no path", name)
			return nil
		}
		out = append(out, string(b))
	}
	return out
}

func decodeLayerMap(data []byte) (layerMap, error) {
	f := readBlock(data, kindLayer)
	m := layerMap{diff: f.asKey(f.get("diff"), "diff id"), size: f.num("size", maxLayerLen)}
	if f.err == nil && hasKey(f.n, "parts") {
		m.parts = f.sized("parts", maxParts, partChunks*MaxBlock, codecCBOR)
		f.sum(m.parts, m.size)
	} else {
		m.chunks = f.sized("chunks", partChunks, MaxBlock, codecRaw)
		f.sum(m.chunks, m.size)
	}
	if f.err == nil && hasKey(f.n, "toc") {
		m.toc = f.sized("toc", maxTOC, MaxBlock, codecRaw)
	}
	if f.err != nil {
		return layerMap{}, fmt.Errorf("layer map: %w", f.err)
	}
	return m, nil
}

func decodeChunks(data []byte, size uint64) ([]sized, error) {
	f := readBlock(data, kindChunks)
	chunks := f.sized("chunks", partChunks, MaxBlock, codecRaw)
	f.sum(chunks, size)
	if f.err != nil {
		return nil, fmt.Errorf("part of a layer map: %w", f.err)
	}
	return chunks, nil
}

// sum checks that sizes add up to what was promised.
func (f *fields) sum(list []sized, want uint64) {
	var n uint64
	for _, c := range list {
		if c.size == 0 {
			f.fail("an empty chunk")
		}
		n += c.size
	}
	if n != want {
		f.fail("sizes add up to %d, not %d", n, want)
	}
}

func hasKey(n datamodel.Node, name string) bool {
	if n.Kind() != datamodel.Kind_Map {
		return false
	}
	_, err := n.LookupByString(name)
	return err == nil
}

// hintedLinks returns the links of one of our own blocks with the sizes told
// beside them, and false for any other block.
func hintedLinks(n datamodel.Node) ([]link, bool) {
	f := &fields{n: n}
	kind := f.str("kind")
	var links []link
	add := func(list []sized) {
		for _, c := range list {
			links = append(links, link{c.ref, c.size})
		}
	}
	switch {
	case f.err != nil:
		return nil, false
	case kind == kindImage:
		links = append(links,
			link{ref: f.asRef(f.get("config"), codecRaw, "config")},
			link{ref: f.asRef(f.get("manifest"), codecRaw, "manifest")})
		for _, row := range f.list("layers", maxLayers, 3) {
			links = append(links, link{f.asRef(row[2], codecCBOR, "layer map"), f.asNum(row[1], maxLayerLen, "layer size")})
		}
	case kind == kindLayer && hasKey(n, "toc"):
		add(f.sized("toc", maxTOC, MaxBlock, codecRaw)) // first: it says what else is wanted first
		if hasKey(n, "chunks") {
			add(f.sized("chunks", partChunks, MaxBlock, codecRaw))
		} else {
			add(f.sized("parts", maxParts, partChunks*MaxBlock, codecCBOR))
		}
	case (kind == kindLayer || kind == kindChunks) && hasKey(n, "chunks"):
		add(f.sized("chunks", partChunks, MaxBlock, codecRaw))
	case kind == kindLayer:
		add(f.sized("parts", maxParts, partChunks*MaxBlock, codecCBOR))
	default:
		return nil, false
	}
	return links, f.err == nil
}
