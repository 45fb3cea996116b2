package node

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/multiformats/go-multiaddr"

	"github.com/lumbung-net/lumbung/job/gpu"
	"github.com/lumbung-net/lumbung/protocol"
)

// The roles a node can have.
const (
	RoleRenter    = "renter"
	RoleProvider  = "provider"
	RoleBootstrap = "bootstrap"
)

// Config is all that a person decides about a node. The tags are the names of
// the configuration file; constants of the protocol are not among them.
type Config struct {
	Home      string   `yaml:"-"`
	Network   string   `yaml:"network"`
	Roles     []string `yaml:"roles"`
	Listen    []string `yaml:"listen"`    // multiaddrs
	Public    []string `yaml:"public"`    // multiaddrs that others reach this node at
	Bootstrap []string `yaml:"bootstrap"` // multiaddrs with /p2p/…
	API       string   `yaml:"api"`       // also serve the API on this loopback address
	Region    string   `yaml:"region"`

	CPUMillis uint32 `yaml:"cpu_millis"` // capacity to sell; 0 is what the machine has
	Memory    uint64 `yaml:"memory"`     // bytes; 0 is three quarters of the machine's
	Disk      uint64 `yaml:"disk"`       // bytes; 0 is half of what is free
	FakeGPU   string `yaml:"fake_gpu"`
	PriceCPU  string `yaml:"price_cpu"` // per core and hour, such as "0.01"; "" is what was set last, or the default
	PriceGPU  string `yaml:"price_gpu"` // per card and hour, likewise
	IPFS      bool   `yaml:"ipfs"`      // content may be fetched from IPFS nodes, when a person asks for it

	// Runtime is an OCI runtime of the machine, by name or absolute path, that
	// runs containers instead of gVisor; "" and GVisor are gVisor.
	Runtime string `yaml:"runtime"`

	// AllowNet lets containers of jobs that ask for it reach the public internet
	// from this machine's address.
	AllowNet bool `yaml:"allow_net"`
	// WholeImages makes containers start only when their image is whole.
	WholeImages bool `yaml:"whole_images"`

	// AllowUnheld takes offers although a limit of theirs cannot be held here.
	AllowUnheld bool `yaml:"allow_unheld"`

	CacheSize  uint64        `yaml:"cache_size"`  // bytes of jobs' caches to keep at most; 0 is 50 GB or a tenth of what is free
	UploadRate uint64        `yaml:"upload_rate"` // bytes of blocks a second to all peers together; 0 is no bound
	StoreMax   uint64        `yaml:"store_max"`   // bytes of blocks to keep at most; 0 is no bound
	Heartbeat  time.Duration `yaml:"heartbeat"`   // that a renter asks of its providers
	BidWindow  time.Duration `yaml:"bid_window"`
	Runsc      string        `yaml:"runsc"` // a gVisor of one's own instead of the embedded one
	Debug      bool          `yaml:"debug"`
	Version    string        `yaml:"-"`
}

// GVisor is the name of the default runtime.
const GVisor = "gvisor"

// OCI is the OCI runtime that containers run by, or "".
func (c Config) OCI() string {
	if c.Runtime == GVisor {
		return ""
	}
	return c.Runtime
}

// DefaultNetwork is the network of a node that names no other.
const DefaultNetwork = "lumbung"

// WithDefaults fills in what was not decided.
func (c Config) WithDefaults() Config {
	if c.Network == "" {
		c.Network = DefaultNetwork
	}
	if len(c.Roles) == 0 {
		c.Roles = []string{RoleRenter}
	}
	if len(c.Listen) == 0 {
		c.Listen = []string{"/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1", "/ip6/::/tcp/0", "/ip6/::/udp/0/quic-v1"}
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = 5 * time.Second
	}
	if c.BidWindow == 0 {
		c.BidWindow = 2 * time.Second
	}
	if c.Version == "" {
		c.Version = "dev"
	}
	return c
}

// Has reports whether the node has a role.
func (c Config) Has(role string) bool { return slices.Contains(c.Roles, role) }

// ErrConfig says that a configuration cannot be used.
var ErrConfig = errors.New("configuration")

// Validate reports the first setting that cannot be.
func (c Config) Validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...)
	}
	if !filepath.IsAbs(c.Home) {
		return bad("home %q is no absolute path", c.Home)
	}
	if err := protocol.CheckNetwork(c.Network); err != nil {
		return bad("%w", err)
	}
	for _, r := range c.Roles {
		if r != RoleRenter && r != RoleProvider && r != RoleBootstrap {
			return bad("role %q is not known: want renter, provider or bootstrap", r)
		}
	}
	for name, list := range map[string][]string{"listen": c.Listen, "public": c.Public, "bootstrap": c.Bootstrap} {
		for _, a := range list {
			if _, err := multiaddr.NewMultiaddr(a); err != nil {
				return bad("%s: %q is no multiaddr such as /ip4/203.0.113.7/tcp/4011: %w", name, a, err)
			}
			if name == "bootstrap" && !strings.Contains(a, "/p2p/") {
				return bad("bootstrap: %q does not end in /p2p/PEER; `lumbung id` on that node prints the whole address", a)
			}
		}
	}
	for name, price := range map[string]string{"price_cpu": c.PriceCPU, "price_gpu": c.PriceGPU} {
		if _, err := parsePrice(price); price != "" && err != nil {
			return bad("%s: %w", name, err)
		}
	}
	if c.Heartbeat.Milliseconds() < protocol.MinHeartbeat || c.Heartbeat.Milliseconds() > protocol.MaxHeartbeat {
		return bad("heartbeat: %s is not between %d ms and %d ms", c.Heartbeat, protocol.MinHeartbeat, protocol.MaxHeartbeat)
	}
	if c.BidWindow < 50*time.Millisecond || c.BidWindow > time.Minute {
		return bad("bid_window: %s is not between 50ms and 1m", c.BidWindow)
	}
	if strings.Contains(c.Runtime, "/") && !filepath.IsAbs(c.Runtime) {
		return bad("runtime: %q is neither a name on the PATH, such as runc, nor an absolute path", c.Runtime)
	}
	if c.FakeGPU != "" {
		if !protocol.AllowsFake(c.Network) {
			return bad("fake_gpu: network %q takes no fake GPUs; only networks whose name begins with dev or test do", c.Network)
		}
		if _, err := gpu.Fake(c.FakeGPU); err != nil {
			return bad("fake_gpu: %w", err)
		}
	}
	return nil
}
