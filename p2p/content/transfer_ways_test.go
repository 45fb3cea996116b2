//go:build unix

package content_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/ipld/merkledag"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"

	"github.com/lumbung-net/lumbung/p2p/content"
)

// The other ways that bytes can go.

// putStore lets bitswap put into a store.
type putStore struct {
	blockstore.Blockstore
	s *content.Store
}

func (p putStore) Put(ctx context.Context, b blocks.Block) error {
	return p.s.Put(ctx, b.Cid(), b.RawData())
}

func (p putStore) PutMany(ctx context.Context, list []blocks.Block) error {
	for _, b := range list {
		if err := p.Put(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// byBitswap fetches with boxo's bitswap as it comes, client and servers, and
// boxo's own concurrent walk, between hosts and stores like ours, which know
// each other already.
func byBitswap(b *testing.B, to *node, root cid.Cid, from ...*node) {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	swap := func(n *node) *bitswap.Bitswap {
		bn := bsnet.NewFromIpfsHost(n.h)
		bs := bitswap.New(ctx, bn, nil, putStore{content.Blockstore(n.s), n.s})
		bn.Start(bs)
		return bs
	}
	for _, n := range from {
		server := swap(n)
		defer func() { _ = server.Close() }()
	}
	client := swap(to)
	defer func() { _ = client.Close() }()
	dag := merkledag.NewDAGService(blockservice.New(putStore{content.Blockstore(to.s), to.s}, client))
	ok(b, merkledag.FetchGraph(ctx, root, dag))
	ok(b, to.s.Sync())
}

// byStream moves bytes over one bare libp2p stream, nothing checked or kept.
func byStream(b *testing.B, from, to *node, size int64) {
	b.Helper()
	from.h.SetStreamHandler("/lumbung/bench/bare", func(st network.Stream) {
		pour(st, size)
		_ = st.Close()
	})
	st, err := to.h.NewStream(b.Context(), from.h.ID(), "/lumbung/bench/bare")
	ok(b, err)
	_, err = st.Write([]byte{1})
	ok(b, err)
	drain(b, st, size)
	_ = st.Close()
}

func pour(w io.Writer, size int64) {
	buf := make([]byte, 256<<10)
	for size > 0 {
		n, err := w.Write(buf[:min(size, int64(len(buf)))])
		if err != nil {
			return
		}
		size -= int64(n)
	}
}

func drain(b *testing.B, r io.Reader, size int64) {
	b.Helper()
	buf := make([]byte, 256<<10)
	got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, buf)
	if got < size || err != nil && !errors.Is(err, io.EOF) {
		b.Fatalf("%d of %d bytes: %v", got, size, err)
	}
}

// byTCP moves bytes over one plain connection, with TLS if there is a
// configuration, over a link if there is one.
func byTCP(b *testing.B, size int64, conf *tls.Config, over *link) {
	b.Helper()
	ln, err := new(net.ListenConfig).Listen(b.Context(), "tcp", "127.0.0.1:0")
	ok(b, err)
	defer func() { _ = ln.Close() }()
	var wg sync.WaitGroup
	wg.Go(func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer func() { _ = c.Close() }()
		if conf != nil {
			c = tls.Server(c, conf)
		}
		pour(c, size)
		if conf != nil {
			_ = c.(*tls.Conn).CloseWrite()
		}
	})
	addr := ln.Addr()
	if over != nil {
		addr = over.listen(b, addr.String())
	}
	c, err := new(net.Dialer).DialContext(b.Context(), "tcp", addr.String())
	ok(b, err)
	defer func() { _ = c.Close() }()
	if conf != nil {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}) //nolint:gosec // both ends are this process
	}
	drain(b, c, size)
	wg.Wait()
}

// toDisk writes bytes and makes them durable, and does nothing else.
func toDisk(b *testing.B, size int64) {
	b.Helper()
	f, err := os.Create(filepath.Join(b.TempDir(), "bytes"))
	ok(b, err)
	pour(f, size)
	ok(b, errors.Join(f.Sync(), f.Close()))
	ok(b, os.Remove(f.Name()))
}

// selfSigned is a TLS configuration for a server.
func selfSigned(b *testing.B) *tls.Config {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ok(b, err)
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	ok(b, err)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS13}
}
