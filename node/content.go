package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ipfs/go-cid"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/p2p"
	"github.com/lumbung-net/lumbung/p2p/content"
	"github.com/lumbung-net/lumbung/protocol"
)

// contentNetwork fits the host to what the content exchange asks of a network.
type contentNetwork struct{ host *p2p.Host }

func (c contentNetwork) OpenContent(ctx context.Context, to, name string) (content.Stream, error) {
	id, err := peer.Decode(to)
	if err != nil {
		return nil, fmt.Errorf("peer %s: %w", to, err)
	}
	return c.host.OpenStream(ctx, id, routeContent(name))
}

func (n *Node) contentHandler(name string) func(context.Context, peer.ID, network.Stream) error {
	return func(ctx context.Context, from peer.ID, st network.Stream) error {
		return n.exchange.ServeStream(ctx, from.String(), name, st)
	}
}

// fetch brings a DAG here from peers, and from those that the DHT knows of. The
// origins are asked last.
func (n *Node) fetch(ctx context.Context, root cid.Cid, kind content.Kind, origins, from []protocol.PeerID, maxBytes uint64, progress func(job.Progress)) error {
	more, stop := n.holders(ctx, root)
	defer stop()
	return n.fetchFrom(ctx, root, content.FetchOptions{
		Kind: kind, Peers: n.peerNames(from), Origins: n.peerNames(origins), MorePeers: more, MaxBytes: maxBytes,
	}, progress)
}

// renterContent fits the content store to what a renter asks of it.
type renterContent struct{ n *Node }

// ResolveImage looks for an image by name or id first, then on disk.
func (c renterContent) ResolveImage(ctx context.Context, ref, dir string, progress func(job.Progress)) (job.ImageInfo, error) {
	if id, ok := strings.CutPrefix(ref, "cid:"); ok {
		root, err := content.ParseCID(id)
		if err != nil {
			return job.ImageInfo{}, err
		}
		c.n.hold(ctx, root)
		return c.n.images.byRoot(ctx, root, ref)
	}
	prefix, _, _ := content.CutImageForm(ref)
	path := AbsoluteImage(ref, dir)
	if prefix == "" {
		if info, err := c.named(ctx, ref); err == nil || !errors.Is(err, job.ErrNotFound) {
			return info, err
		}
		if _, err := os.Stat(path); err != nil {
			return job.ImageInfo{}, noSuchImage(path)
		}
	}
	im, err := c.n.images.load(ctx, path, content.LoadOptions{}, progress)
	if err != nil {
		return job.ImageInfo{}, badContent(err)
	}
	c.n.hold(ctx, im.Root)
	return infoOf(im), nil
}

// named looks an image up by its name or id and holds it; it is looked up again
// until what is held is what is named, for a name may go while it is read.
func (c renterContent) named(ctx context.Context, ref string) (job.ImageInfo, error) {
	for held := cid.Undef; ; {
		im, err := c.n.db.Image(ctx, ref)
		if err != nil {
			return job.ImageInfo{}, err
		}
		root, err := cid.Cast(im.Root)
		if err != nil || root == held {
			return im.ImageInfo, err
		}
		c.n.hold(ctx, root)
		held = root
	}
}

func infoOf(im content.Image) job.ImageInfo {
	return job.ImageInfo{
		ImageRef:   job.ImageRef{Name: im.Name, ID: im.ID, Root: im.Root.Bytes(), Size: im.Bytes, Platform: im.Platform},
		Entrypoint: im.Config.Entrypoint, Command: im.Config.Cmd, Env: im.Config.Env,
		Workdir: im.Config.WorkingDir, User: im.Config.User,
	}
}

// AddInput makes a DAG of a file or folder; "cid:…" is one already.
func (c renterContent) AddInput(ctx context.Context, from, dir string, progress func(job.Progress)) (job.Root, error) {
	if id, ok := strings.CutPrefix(from, "cid:"); ok {
		root, err := content.ParseCID(id)
		if err != nil {
			return job.Root{}, err
		}
		c.n.hold(ctx, root)
		size, err := content.DAGSize(ctx, c.n.blocks, root)
		if err != nil {
			return job.Root{}, fmt.Errorf("not whole in this node's store; `lumbung pin %s` fetches it: %w", id, err)
		}
		return job.Root{CID: root.Bytes(), Size: size.Bytes}, nil
	}
	if !filepath.IsAbs(from) {
		from = filepath.Join(dir, from)
	}
	added, err := content.Add(ctx, c.n.blocks, from, content.AddOptions{Memory: c.n.db, Progress: passOn(progress)})
	if err != nil {
		return job.Root{}, err
	}
	c.n.hold(ctx, added.CID)
	return job.Root{CID: added.CID.Bytes(), Size: added.Size}, nil
}

func passOn(progress func(job.Progress)) func(content.Progress) {
	return func(p content.Progress) { progress(job.Progress{Phase: p.Phase, Done: p.Done, Total: p.Total}) }
}

func (c renterContent) FetchDAG(ctx context.Context, root []byte, from []protocol.PeerID, maxBytes uint64, progress func(job.Progress)) error {
	id, err := cid.Cast(root)
	if err != nil {
		return err
	}
	return c.n.fetch(ctx, id, content.KindDAG, nil, from, slack(maxBytes), progress)
}

// slack lets a DAG be larger than the files in it by its own nodes.
func slack(n uint64) uint64 {
	const most = math.MaxUint64 / 2
	return min(n, most) + min(n, most)/16 + 1<<20
}

// providerContent fits the content store to what a provider asks of it.
type providerContent struct{ n *Node }

// CachedImage is what is here of an image; of a whole one it is the most there
// can be, for the layers' size is not that of their blocks.
func (c providerContent) CachedImage(ctx context.Context, root []byte) uint64 {
	id, err := cid.Cast(root)
	if err != nil {
		return 0
	}
	have, _, complete, err := content.Missing(ctx, c.n.blocks, id)
	if err != nil {
		return 0
	}
	if complete {
		return math.MaxUint64
	}
	return have
}

// cacheTime is how long a fetched image is kept from collection after the last
// job that used it.
const cacheTime = 7 * 24 * time.Hour

// FetchImage brings an image here and checks that it is the one the lease names.
func (c providerContent) FetchImage(ctx context.Context, im *protocol.Image, from []protocol.PeerID, progress func(job.Progress)) error {
	return c.fetchImage(ctx, im, from, progress, c.n.arrivals.begin)
}

// FetchWholeImage is FetchImage of an image that does not arrive later than this
// returns.
func (c providerContent) FetchWholeImage(ctx context.Context, im *protocol.Image, from []protocol.PeerID, progress func(job.Progress)) error {
	return c.fetchImage(ctx, im, from, progress, c.n.arrivals.finish)
}

// early lets an image arrive, if it may, and reports whether containers on it can
// be prepared.
type early func(ctx context.Context, root cid.Cid, size uint64, plan arrivalPlan, progress func(job.Progress)) (bool, error)

func (c providerContent) fetchImage(ctx context.Context, im *protocol.Image, from []protocol.PeerID, progress func(job.Progress), begin early) error {
	root, err := cid.Cast(im.GetRoot())
	if err != nil {
		return err
	}
	err = c.n.db.Update(ctx, func(tx job.Tx) error {
		return tx.HoldBlocks("image:"+root.String(), root.Bytes(), c.n.now().Add(cacheTime))
	})
	if err != nil {
		return err
	}
	renter, holders := renterLast(from)
	begun, err := begin(ctx, root, im.GetSize(), arrivalPlan{
		Peers: c.n.peerNames(holders), Origins: c.n.peerNames(renter), MaxBytes: slack(im.GetSize()),
	}, progress)
	if err != nil {
		return err
	}
	if !begun {
		if err := c.n.fetch(ctx, root, content.KindImage, renter, holders, slack(im.GetSize()), progress); err != nil {
			return err
		}
	}
	here, err := content.ReadImage(ctx, c.n.blocks, root)
	if err != nil {
		return err
	}
	if here.ID != fmt.Sprintf("sha256:%x", im.GetConfigSha256()) {
		return fmt.Errorf("image %s has the id %s, the lease says sha256:%x", root, here.ID, im.GetConfigSha256())
	}
	return nil
}

func (c providerContent) FetchDAG(ctx context.Context, root []byte, from []protocol.PeerID, maxBytes uint64, progress func(job.Progress)) error {
	id, err := cid.Cast(root)
	if err != nil {
		return err
	}
	renter, holders := renterLast(from)
	return c.n.fetch(ctx, id, content.KindDAG, renter, holders, slack(maxBytes), progress)
}

func (c providerContent) Rootfs(ctx context.Context, root []byte, owner string) (string, job.ImageInfo, error) {
	id, err := cid.Cast(root)
	if err != nil {
		return "", job.ImageInfo{}, err
	}
	if dir, arriving := c.n.arrivals.rootfs(id, owner); arriving {
		c.n.images.use(id, owner)
		info, err := c.n.images.byRoot(ctx, id, "")
		return dir, info, err
	}
	return c.n.images.rootfs(ctx, id, owner)
}

func (c providerContent) ReleaseRootfs(owner string) {
	c.n.arrivals.release(owner)
	c.n.images.release(owner)
}

func (c providerContent) Materialize(ctx context.Context, root []byte, dest string) error {
	id, err := cid.Cast(root)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(dest), 0o755); err != nil {
		return err
	}
	// Links that lead outside are the program's own affair: nothing follows them
	// but the container.
	_, err = content.ExportWith(ctx, c.n.blocks, id, dest, content.ExportOptions{KeepOutsideLinks: true})
	return err
}

// Save makes a DAG of a folder and holds it.
func (c providerContent) Save(ctx context.Context, dir string) ([]byte, uint64, error) {
	return c.n.saved(ctx, dir, "", content.AddOptions{Memory: c.n.snapshots.known(dir)})
}
