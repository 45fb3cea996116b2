package node

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	chunker "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/files"
	"github.com/ipfs/boxo/ipld/merkledag"
	unixfile "github.com/ipfs/boxo/ipld/unixfs/file"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	format "github.com/ipfs/go-ipld-format"
	car "github.com/ipld/go-car/v2"
	"github.com/ipld/go-ipld-prime/codec/dagcbor"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/fluent/qp"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/multiformats/go-multihash"

	"github.com/lumbung-net/lumbung/node/client"
)

// ipfsNode is an IPFS node made of boxo's parts.
type ipfsNode struct {
	host.Host
	blocks  *blockservice.BlockService
	service format.DAGService
}

func newIPFSNode(t *testing.T) *ipfsNode {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	kept := blockstore.NewBlockstore(dssync.MutexWrap(datastore.NewMapDatastore()))
	swap := bitswap.New(context.WithoutCancel(t.Context()), bsnet.NewFromIpfsHost(h), nil, kept)
	t.Cleanup(func() {
		if err := errors.Join(swap.Close(), h.Close()); err != nil {
			t.Error(err)
		}
	})
	tellsOfBitswap(t, h)
	service := blockservice.New(kept, swap)
	return &ipfsNode{Host: h, blocks: &service, service: merkledag.NewDAGService(service)}
}

// tellsOfBitswap waits until a host tells those it meets that it speaks bitswap.
// That follows its handlers after a moment, in which it would be taken for one
// that does not.
func tellsOfBitswap(t *testing.T, h host.Host) {
	t.Helper()
	probe, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = probe.Close() }()
	if err := probe.Connect(t.Context(), peer.AddrInfo{ID: h.ID(), Addrs: h.Addrs()}); err != nil {
		t.Fatal(err)
	}
	for ; ; runtime.Gosched() {
		got, err := probe.Peerstore().SupportsProtocols(h.ID(), bsnet.ProtocolBitswap)
		if err != nil || t.Context().Err() != nil {
			t.Fatal("a host does not tell that it speaks bitswap", err)
		}
		if len(got) > 0 {
			return
		}
	}
}

// meets connects an IPFS node to one of ours.
func (n *ipfsNode) meets(t *testing.T, to *running) {
	t.Helper()
	infos, err := peer.AddrInfosFromP2pAddrs(to.host.Addrs()[0].Encapsulate(p2pPart(t, to.PeerID())))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Connect(t.Context(), infos[0]); err != nil {
		t.Fatal(err)
	}
}

func (n *ipfsNode) addrs() []string {
	var out []string
	for _, a := range n.Addrs() {
		out = append(out, a.String()+"/p2p/"+n.ID().String())
	}
	return out
}

// add makes a file as `ipfs add` does by default (CIDv0, wrapped leaves) or as it
// does with --cid-version=1.
func (n *ipfsNode) add(t *testing.T, data []byte, v1 bool) cid.Cid {
	t.Helper()
	params := helpers.DagBuilderParams{Dagserv: n.service, Maxlinks: helpers.DefaultLinksPerBlock}
	if v1 {
		params.RawLeaves = true
		params.CidBuilder = cid.V1Builder{Codec: cid.DagProtobuf, MhType: multihash.SHA2_256}
	}
	db, err := params.New(chunker.NewSizeSplitter(bytes.NewReader(data), 256<<10))
	if err != nil {
		t.Fatal(err)
	}
	root, err := balanced.Layout(db)
	if err != nil {
		t.Fatal(err)
	}
	return root.Cid()
}

func (n *ipfsNode) put(t *testing.T, codec uint64, data []byte) cid.Cid {
	t.Helper()
	sum, err := multihash.Sum(data, multihash.SHA2_256, -1)
	if err != nil {
		t.Fatal(err)
	}
	b, err := blocks.NewBlockWithCid(data, cid.NewCidV1(codec, sum))
	if err == nil {
		err = (*n.blocks).AddBlock(t.Context(), b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Cid()
}

func noise(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// writeTree makes a folder with files of all sizes.
func writeTree(t *testing.T) (dir string, files map[string][]byte) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "tree")
	files = map[string][]byte{"one": []byte("one"), "nothing": nil, "sub/big": noise(1, 3<<20+17), "sub/deep/mid": noise(2, 100_000)}
	for name, data := range files {
		at := filepath.Join(dir, filepath.FromSlash(name))
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir, files
}

func TestIPFSNodeFetchesFromUs(t *testing.T) {
	us := start(t, nil)
	dir, want := writeTree(t)
	added, err := us.c.Add(t.Context(), client.PathRequest{Path: dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	image, err := us.c.LoadImage(t.Context(), client.PathRequest{Path: dir, Name: "tree"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ipfs := newIPFSNode(t)
	ipfs.meets(t, us)

	// The folder, by boxo's own UnixFS.
	root := parsed(t, added.CID)
	top, err := ipfs.service.Get(t.Context(), root)
	if err != nil {
		t.Fatal(err)
	}
	file, err := unixfile.NewUnixfsFile(t.Context(), ipfs.service, top)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]byte{}
	err = files.Walk(file, func(name string, n files.Node) error {
		f, ok := n.(files.File)
		if !ok {
			return nil
		}
		raw, err := io.ReadAll(f)
		got[name] = raw
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Errorf("%d files, want %d", len(got), len(want))
	}
	for name := range want {
		if !bytes.Equal(got[name], want[name]) {
			t.Errorf("%s: other bytes", name)
		}
	}

	// The image, block by block.
	var raw bytes.Buffer
	if err := us.c.ExportDAG(t.Context(), image.CID, &raw); err != nil {
		t.Fatal(err)
	}
	br, err := car.NewBlockReader(&raw)
	if err != nil {
		t.Fatal(err)
	}
	session := blockservice.NewSession(t.Context(), *ipfs.blocks)
	count := 0
	for {
		ours, err := br.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := session.GetBlock(t.Context(), ours.Cid())
		if err != nil || !bytes.Equal(ours.RawData(), theirs.RawData()) {
			t.Fatalf("block %s of the image: %v", ours.Cid(), err)
		}
		count++
	}
	if br.Roots[0].String() != image.CID || count < 5 {
		t.Errorf("image %v of %d blocks", br.Roots, count)
	}
	// By its CIDv0 too: the folder's root is of dag-pb.
	if _, err := ipfs.service.Get(t.Context(), cid.NewCidV0(root.Hash())); err != nil {
		t.Error(err)
	}
}

// What IPFS nodes fetch counts in the rate of uploads.
func TestIPFSNodeKeepsToTheRate(t *testing.T) {
	const size, rate = 4 << 20, 1 << 20
	us := start(t, func(c *Config) { c.UploadRate = rate })
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, noise(6, size), 0o600))
	added, err := us.c.Add(t.Context(), client.PathRequest{Path: path}, nil)
	must(t, err)
	ipfs := newIPFSNode(t)
	ipfs.meets(t, us)
	begin := time.Now()
	top, err := ipfs.service.Get(t.Context(), parsed(t, added.CID))
	must(t, err)
	file, err := unixfile.NewUnixfsFile(t.Context(), ipfs.service, top)
	must(t, err)
	n, err := io.Copy(io.Discard, file.(files.File))
	must(t, err)
	// The last block is sent before it is paid for, and a quarter of a second is saved up.
	if took := time.Since(begin); n != size || took < 2*time.Second {
		t.Errorf("%d bytes at %d a second took %v", n, rate, took)
	}
}

func parsed(t *testing.T, s string) cid.Cid {
	t.Helper()
	c, err := cid.Decode(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPinFromAnIPFSNode(t *testing.T) {
	us := start(t, func(c *Config) { c.IPFS = true })
	ipfs := newIPFSNode(t)
	data := noise(3, 3<<20+5)
	leaf := ipfs.put(t, cid.Raw, []byte("a leaf"))
	cbor := ipfs.put(t, cid.DagCBOR, encoded(t, leaf))
	for _, tt := range []struct {
		name string
		cid  cid.Cid
		file []byte
	}{
		{"CIDv0", ipfs.add(t, data, false), data},
		{"CIDv1", ipfs.add(t, data, true), data},
		{"raw", leaf, []byte("a leaf")}, // before what links to it, which brings it along
		{"cbor", cbor, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var last client.Progress
			added, err := us.c.Pin(t.Context(), client.PinRequest{CID: tt.cid.String(), From: ipfs.addrs()}, func(p client.Progress) { last = p })
			if err != nil {
				t.Fatal(err)
			}
			if tt.file != nil {
				var b bytes.Buffer
				if err := us.c.Cat(t.Context(), added.CID, &b); err != nil || !bytes.Equal(b.Bytes(), tt.file) {
					t.Errorf("%d bytes of %d, %v", b.Len(), len(tt.file), err)
				}
			}
			if int(added.Bytes) < len(tt.file) || last.Done != added.Bytes {
				t.Errorf("%+v, progress %+v", added, last)
			}
		})
	}
	if !us.blocks.Has(leaf) {
		t.Error("what a dag-cbor block links to was not fetched")
	}

	absent := ipfs.add(t, noise(4, 10), true)
	if err := (*ipfs.blocks).DeleteBlock(t.Context(), absent); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		req  client.PinRequest
		code string
		says string
	}{
		"does not have it": {client.PinRequest{CID: absent.String(), From: ipfs.addrs()}, "not_fetched", "no peer that was asked has it"},
		"no codec of ours": {client.PinRequest{CID: cid.NewCidV1(cid.DagJSON, leaf.Hash()).String(), From: ipfs.addrs()}, "bad_cid", "codec"},
		"no address":       {client.PinRequest{CID: absent.String(), From: []string{"127.0.0.1:4001"}}, "bad_address", "multiaddr"},
		"no peer":          {client.PinRequest{CID: absent.String(), From: []string{"/ip4/127.0.0.1/tcp/4001"}}, "bad_address", "/p2p/"},
		"nobody there": {client.PinRequest{CID: absent.String(), From: []string{
			"/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf",
		}}, "not_fetched", "12D3KooWGzxz"},
	} {
		_, err := us.c.Pin(t.Context(), tt.req, nil)
		var p *client.Problem
		if !errors.As(err, &p) || p.Code != tt.code || !strings.Contains(p.Detail, tt.says) || p.Remedy == "" {
			t.Errorf("%s: %v %+v", name, err, p)
		}
	}
	// One that is connected is asked when this network has not got it.
	ipfs.meets(t, us)
	late := ipfs.add(t, noise(5, 300_000), true)
	if _, err := us.c.Pin(t.Context(), client.PinRequest{CID: late.String()}, nil); err != nil {
		t.Error(err)
	}
}

func TestPinFromNeedsLeave(t *testing.T) {
	us := start(t, nil)
	ipfs := newIPFSNode(t)
	ipfs.meets(t, us)
	c := ipfs.add(t, []byte("not for us"), true)
	_, err := us.c.Pin(t.Context(), client.PinRequest{CID: c.String(), From: ipfs.addrs()}, nil)
	var p *client.Problem
	if !errors.As(err, &p) || p.Code != "ipfs_off" || !strings.Contains(p.Remedy, "--ipfs") {
		t.Errorf("%v", err)
	}
	if _, err := us.c.Pin(t.Context(), client.PinRequest{CID: c.String()}, nil); err == nil || us.blocks.Has(c) {
		t.Errorf("an IPFS node that is connected was asked: %v", err)
	}
}

// encoded is a dag-cbor block with a link in it.
func encoded(t *testing.T, to cid.Cid) []byte {
	t.Helper()
	n, err := qp.BuildMap(basicnode.Prototype.Map, 1, func(ma datamodel.MapAssembler) {
		qp.MapEntry(ma, "to", qp.Link(cidlink.Link{Cid: to}))
	})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := dagcbor.Encode(n, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestCARsInAndOut(t *testing.T) {
	from, to := start(t, nil), start(t, nil)
	dir, _ := writeTree(t)
	added, err := from.c.Add(t.Context(), client.PathRequest{Path: dir}, nil)
	if err != nil {
		t.Fatal(err)
	}
	var raw bytes.Buffer
	if err := from.c.ExportDAG(t.Context(), added.CID, &raw); err != nil {
		t.Fatal(err)
	}
	whole := raw.Bytes()
	// Cut short: what came is kept and pinned, and a collection leaves it.
	_, err = to.c.ImportDAG(t.Context(), bytes.NewReader(whole[:len(whole)-100]), nil)
	var p *client.Problem
	if !errors.As(err, &p) || p.Code != "bad_car" || !strings.Contains(p.Detail, "offset") || p.Remedy == "" {
		t.Errorf("%v", err)
	}
	before := to.blocks.Stats().Blocks
	if _, err := to.c.GC(t.Context()); err != nil || before == 0 || to.blocks.Stats().Blocks != before {
		t.Errorf("%d blocks of %d after a collection, %v", to.blocks.Stats().Blocks, before, err)
	}
	got, err := to.c.ImportDAG(t.Context(), bytes.NewReader(whole), nil)
	if err != nil || len(got.Roots) != 1 || got.Roots[0] != added.CID {
		t.Fatalf("%+v, %v", got, err)
	}
	pins, err := to.c.Pins(t.Context())
	if err != nil || len(pins) != 1 || pins[0].CID != added.CID {
		t.Errorf("%+v, %v", pins, err)
	}
	var again bytes.Buffer
	if err := to.c.ExportDAG(t.Context(), added.CID, &again); err != nil || !bytes.Equal(again.Bytes(), whole) {
		t.Errorf("another CAR comes out than went in: %v", err)
	}
	err = to.c.ExportDAG(t.Context(), "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyka", io.Discard)
	if !errors.As(err, &p) || p.Code != "not_here" && p.Code != "bad_cid" {
		t.Errorf("%v", err)
	}
}

// readerFunc is a reader of a function.
type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestImportSaysAtOnceWhatIsWrong(t *testing.T) {
	us := start(t, nil)
	endless := readerFunc(func(p []byte) (int, error) {
		for i := range p {
			p[i] = 0xff
		}
		return len(p), nil
	})
	_, err := us.c.ImportDAG(t.Context(), endless, nil)
	var p *client.Problem
	if !errors.As(err, &p) || p.Code != "bad_car" {
		t.Errorf("%v", err)
	}
}
