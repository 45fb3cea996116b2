package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/job"
	"github.com/lumbung-net/lumbung/node"
)

// setting is one thing that a person decides about a node: by a flag, by
// LUMBUNG_NAME in the environment or by a key of the configuration file, in
// this order. A key is the flag's name with _ for -.
type setting struct {
	name   string
	usage  string
	list   bool // may be given several times, or as a list in the file
	yesNo  bool
	hidden bool
	set    func(c *node.Config, v string) error
}

func (s setting) env() string { return "LUMBUNG_" + strings.ToUpper(s.key()) }
func (s setting) key() string { return strings.ReplaceAll(s.name, "-", "_") }

// settings are all of them, in the order of the help.
func settings() []setting {
	str := func(at func(*node.Config) *string) func(*node.Config, string) error {
		return func(c *node.Config, v string) error { *at(c) = v; return nil }
	}
	list := func(at func(*node.Config) *[]string) func(*node.Config, string) error {
		return func(c *node.Config, v string) error { *at(c) = splitList(v); return nil }
	}
	size := func(at func(*node.Config) *uint64) func(*node.Config, string) error {
		return func(c *node.Config, v string) (err error) { *at(c), err = job.ParseSize(v); return err }
	}
	yes := func(at func(*node.Config) *bool) func(*node.Config, string) error {
		return func(c *node.Config, v string) (err error) { *at(c), err = strconv.ParseBool(v); return err }
	}
	span := func(at func(*node.Config) *time.Duration) func(*node.Config, string) error {
		return func(c *node.Config, v string) (err error) { *at(c), err = time.ParseDuration(v); return err }
	}
	return []setting{
		{name: "role", usage: "what the node is: renter, provider, bootstrap; `roles` with commas between (default renter)", list: true, set: list(func(c *node.Config) *[]string { return &c.Roles })},
		{name: "network", usage: "`name` of the network to join (default " + node.DefaultNetwork + ")", set: str(func(c *node.Config) *string { return &c.Network })},
		{name: "bootstrap", usage: "`address` of a node to join through, with /p2p/…; may be repeated", list: true, set: list(func(c *node.Config) *[]string { return &c.Bootstrap })},
		{name: "listen", usage: "`address` to listen on, such as /ip4/0.0.0.0/tcp/4011; may be repeated", list: true, set: list(func(c *node.Config) *[]string { return &c.Listen })},
		{name: "public", usage: "`address` at which others reach this node; may be repeated", list: true, set: list(func(c *node.Config) *[]string { return &c.Public })},
		{name: "api", usage: "serve the API on this loopback `address` too, such as 127.0.0.1:4010; callers send the token in api.token of the home", set: setAPI},
		{name: "region", usage: "`region` to tell renters", set: str(func(c *node.Config) *string { return &c.Region })},
		{name: "cpus", usage: "`cores` to let (default all)", set: func(c *node.Config, v string) (err error) { c.CPUMillis, err = job.ParseCPUs(v); return err }},
		{name: "memory", usage: "memory to let, a `size` such as 48GB (default three quarters)", set: size(func(c *node.Config) *uint64 { return &c.Memory })},
		{name: "disk", usage: "disk to let, a `size` (default half of what is free)", set: size(func(c *node.Config) *uint64 { return &c.Disk })},
		{name: "fake-gpu", usage: "let `model`[:count] cards that are none; only on networks named dev… or test…", set: str(func(c *node.Config) *string { return &c.FakeGPU })},
		{name: "price-cpu", usage: "`price` of a core for an hour (default 0.01)", set: str(func(c *node.Config) *string { return &c.PriceCPU })},
		{name: "price-gpu", usage: "`price` of a card for an hour (default 0.40)", set: str(func(c *node.Config) *string { return &c.PriceGPU })},
		{name: "allow-net", usage: "let containers of jobs that ask for it reach the public internet, from this machine's address; never its own network", yesNo: true, set: yes(func(c *node.Config) *bool { return &c.AllowNet })},
		{name: "runtime", usage: "run jobs by this OCI `runtime` of the machine (runc, crun, or a path) instead of gVisor: weaker, for they then share its kernel", set: str(func(c *node.Config) *string { return &c.Runtime })},
		{name: "whole-images", usage: "let a container start only when all of its image is here", yesNo: true, set: yes(func(c *node.Config) *bool { return &c.WholeImages })},
		{name: "allow-unheld", usage: "bid although this machine cannot hold a job to a limit; `lumbung doctor --role provider` names them", yesNo: true, set: yes(func(c *node.Config) *bool { return &c.AllowUnheld })},
		{name: "ipfs", usage: "let `lumbung pin` fetch from IPFS nodes what no node of this network has", yesNo: true, set: yes(func(c *node.Config) *bool { return &c.IPFS })},
		{name: "cache-size", usage: "most room for the folders that jobs keep here, a `size` (default 50GB, or a tenth of what is free)", set: size(func(c *node.Config) *uint64 { return &c.CacheSize })},
		{name: "upload-rate", usage: "most that other nodes are given of blocks in a second, a `size` such as 20MB (default no bound)", set: size(func(c *node.Config) *uint64 { return &c.UploadRate })},
		{name: "store-max", usage: "most room for cached content, a `size` (default no bound)", set: size(func(c *node.Config) *uint64 { return &c.StoreMax })},
		{name: "heartbeat", usage: "`time` between signs of life asked of providers (default 5s)", hidden: true, set: span(func(c *node.Config) *time.Duration { return &c.Heartbeat })},
		{name: "bid-window", usage: "`time` to wait for bids (default 2s)", hidden: true, set: span(func(c *node.Config) *time.Duration { return &c.BidWindow })},
		{name: "runsc", usage: "`file` of a gVisor to use instead of the one inside", hidden: true, set: str(func(c *node.Config) *string { return &c.Runsc })},
		{name: "debug", usage: "log everything", yesNo: true, set: yes(func(c *node.Config) *bool { return &c.Debug })},
	}
}

// setAPI takes an address of this machine alone, and a port that its callers
// can know.
func setAPI(c *node.Config, v string) error {
	host, port, err := net.SplitHostPort(v)
	if err != nil {
		return fmt.Errorf("want HOST:PORT, such as 127.0.0.1:4010: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("%q is no loopback address such as 127.0.0.1:4010; reach the API from elsewhere through ssh -L", v)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q is no number from 1 to 65535", port)
	}
	c.API = v
	return nil
}

func splitList(v string) []string {
	var out []string
	for part := range strings.SplitSeq(v, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

// value is a setting's flag: kept as text until all sources are known.
type value struct {
	setting
	text string
	was  bool // given before
}

func (v *value) String() string { return v.text }

func (v *value) Type() string {
	if v.yesNo {
		return "bool"
	}
	return "text"
}

func (v *value) Set(s string) error {
	if err := v.set(&node.Config{}, s); err != nil {
		return err
	}
	if v.list && v.was {
		s = v.text + "," + s
	}
	v.text, v.was = s, true
	return nil
}

// nodeFlags adds the named settings to a command, or all when none is named.
func nodeFlags(cmd *cobra.Command, names ...string) {
	for _, s := range settings() {
		if len(names) > 0 && !slices.Contains(names, s.name) {
			continue
		}
		cmd.Flags().Var(&value{setting: s}, s.name, s.usage)
		f := cmd.Flags().Lookup(s.name)
		f.Hidden = s.hidden
		if s.yesNo {
			f.NoOptDefVal = "true"
		}
	}
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(
		[]string{node.RoleRenter, node.RoleProvider, node.RoleBootstrap}, cobra.ShellCompDirectiveNoFileComp))
}

// nodeConfig is the node's configuration: flags, then the environment, then the
// file, then the defaults.
func (a *app) nodeConfig(cmd *cobra.Command) (node.Config, error) {
	home, err := a.homeDir()
	if err != nil {
		return node.Config{}, err
	}
	c := node.Config{Home: home, Version: versionText()}
	file, err := a.configFile(home)
	if err != nil {
		return c, err
	}
	for _, s := range settings() {
		text, from := "", ""
		if f := cmd.Flags().Lookup(s.name); f != nil && f.Changed {
			text, from = f.Value.String(), "--"+s.name
		} else if v := a.env(s.env()); v != "" {
			text, from = v, s.env()
		} else if v, ok := file.values[s.key()]; ok {
			text, from = v, file.name+": "+s.key()
		} else {
			continue
		}
		if err := s.set(&c, text); err != nil {
			return c, usageErrf("%s: %w", from, err)
		}
	}
	c = c.WithDefaults()
	if err := c.Validate(); err != nil {
		return c, err
	}
	return c, nil
}

// configured is what a configuration file says.
type configured struct {
	name   string
	values map[string]string
}

// configFile reads config.yaml of the home, or of the XDG configuration folder
// where no home was named. No file is no configuration.
func (a *app) configFile(home string) (configured, error) {
	names := []string{filepath.Join(home, "config.yaml")}
	if dir := a.configDir(); dir != "" && !a.homeSet {
		names = append(names, filepath.Join(dir, "config.yaml"))
	}
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return configured{}, fmt.Errorf("configuration: %w", err)
		}
		values, err := readSettings(raw)
		if err != nil {
			return configured{}, usageErrf("%s: %w", name, err)
		}
		return configured{name: name, values: values}, nil
	}
	return configured{}, nil
}

// readSettings reads a flat YAML map of settings, strictly.
func readSettings(raw []byte) (map[string]string, error) {
	file, err := parser.ParseBytes(raw, 0)
	if err != nil {
		return nil, errors.New(yaml.FormatError(err, false, true))
	}
	known := map[string]setting{}
	for _, s := range settings() {
		known[s.key()] = s
	}
	out := map[string]string{}
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		m, ok := doc.Body.(*ast.MappingNode)
		if !ok {
			return nil, fmt.Errorf("line %d: want lines such as `role: provider`", doc.Body.GetToken().Position.Line)
		}
		for _, pair := range m.Values {
			key := pair.Key.GetToken().Value
			line := pair.Key.GetToken().Position.Line
			s, ok := known[key]
			if !ok {
				return nil, fmt.Errorf("line %d: unknown key %q; did you mean %q?", line, key, nearest(key, known))
			}
			if out[key], err = settingText(pair.Value, s.list); err != nil {
				return nil, fmt.Errorf("line %d: %s: %w", line, key, err)
			}
		}
	}
	return out, nil
}

func settingText(n ast.Node, list bool) (string, error) {
	switch n := n.(type) {
	case *ast.SequenceNode:
		if !list {
			return "", errors.New("want one value, not a list")
		}
		var parts []string
		for _, v := range n.Values {
			text, err := settingText(v, false)
			if err != nil {
				return "", err
			}
			parts = append(parts, text)
		}
		return strings.Join(parts, ","), nil
	case ast.ScalarNode:
		return n.GetToken().Value, nil
	}
	return "", errors.New("want a plain value")
}

// nearest is the key that takes the fewest changes to get to.
func nearest(word string, known map[string]setting) string {
	best, least := "", 1<<30
	for _, s := range settings() {
		if d := distance(word, s.key()); d < least && known[s.key()].set != nil {
			best, least = s.key(), d
		}
	}
	return best
}

// distance counts the typing errors between two words: letters to insert,
// delete or replace, and neighbours to swap (optimal string alignment).
func distance(a, b string) int {
	before, last := []int(nil), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j]+cost, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
