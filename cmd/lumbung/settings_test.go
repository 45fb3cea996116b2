package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/lumbung-net/lumbung/node"
)

func (a *testApp) config(t *testing.T, args ...string) (node.Config, error) {
	t.Helper()
	var cfg node.Config
	var err error
	cmd := &cobra.Command{Use: "x", RunE: func(cmd *cobra.Command, _ []string) error {
		cfg, err = a.nodeConfig(cmd)
		return nil
	}}
	nodeFlags(cmd)
	cmd.SetArgs(args)
	if e := cmd.ExecuteContext(t.Context()); e != nil {
		return cfg, e
	}
	return cfg, err
}

func TestPrecedence(t *testing.T) {
	a := newTestApp(t)
	cfg, err := a.config(t)
	if err != nil || cfg.Network != node.DefaultNetwork || !slices.Equal(cfg.Roles, []string{node.RoleRenter}) || cfg.Home != a.home() {
		t.Fatalf("defaults: %+v, %v", cfg, err)
	}

	file := "network: testfile\nrole: [provider, bootstrap]\ncpus: 2\nmemory: 8GB\nregion: eu\nipfs: true\n"
	if err := os.WriteFile(filepath.Join(a.home(), "config.yaml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	a.vars["LUMBUNG_NETWORK"] = "testenv"
	a.vars["LUMBUNG_CPUS"] = "3"
	cfg, err = a.config(t, "--network", "testflag", "--bootstrap", addrA, "--bootstrap", addrB)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Network != "testflag" {
		t.Errorf("network %q: the flag must win", cfg.Network)
	}
	if cfg.CPUMillis != 3000 {
		t.Errorf("%d millis: the environment must win over the file", cfg.CPUMillis)
	}
	if cfg.Region != "eu" || cfg.Memory != 8_000_000_000 || !cfg.IPFS || !slices.Equal(cfg.Roles, []string{"provider", "bootstrap"}) {
		t.Errorf("the file must win over the defaults: %+v", cfg)
	}
	if !slices.Equal(cfg.Bootstrap, []string{addrA, addrB}) {
		t.Errorf("bootstrap %q", cfg.Bootstrap)
	}
}

const (
	addrA = "/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"
	addrB = "/ip4/127.0.0.1/tcp/4002/p2p/12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf"
)

func TestConfigOfTheUser(t *testing.T) {
	a := newTestApp(t)
	dir := filepath.Join(a.vars["XDG_CONFIG_HOME"], "lumbung")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.yaml"), []byte("region: mars\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if cfg, err := a.config(t); err != nil || cfg.Region != "" {
		t.Errorf("a named home took the user's file: %+v, %v", cfg, err)
	}
	delete(a.vars, "LUMBUNG_HOME")
	cfg, err := a.config(t)
	if err != nil || cfg.Region != "mars" || cfg.Home != filepath.Join(a.vars["XDG_DATA_HOME"], "lumbung") {
		t.Errorf("got %+v, %v", cfg, err)
	}
}

func TestConfigFileIsStrict(t *testing.T) {
	for text, want := range map[string]string{
		"region: eu\nnetwrok: x\n":    `line 2: unknown key "netwrok"; did you mean "network"?`,
		"- a\n":                       "line 1",
		"region: {a: b}\n":            "line 1: region",
		"region: [a, b]\n":            "one value",
		"cpus: many\n":                "cpus",
		"heartbeat: 10ms\n":           "heartbeat",
		"network: [\n":                "config.yaml",
		"fake_gpu: rtx4090\n":         "no fake GPUs",
		"bootstrap: /ip4/127.0.0.1\n": "/p2p/",
	} {
		a := newTestApp(t)
		if err := os.WriteFile(filepath.Join(a.home(), "config.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := a.config(t)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", text, err, want)
			continue
		}
		if v := judge(err); v.Code != exitUsage {
			t.Errorf("%q: code %d", text, v.Code)
		}
	}
}

func TestEverySettingIsSettable(t *testing.T) {
	good := map[string]string{
		"role": "renter", "network": "testx", "bootstrap": addrA, "listen": "/ip4/127.0.0.1/tcp/0", "public": "/ip4/1.2.3.4/tcp/1",
		"api": "127.0.0.1:1", "region": "x", "cpus": "1.5", "memory": "1GB", "disk": "1GB", "fake-gpu": "rtx4090", "price-cpu": "1",
		"price-gpu": "1", "store-max": "1GB", "upload-rate": "20MB", "runtime": "runc", "allow-net": "true", "whole-images": "true", "allow-unheld": "true", "ipfs": "true", "cache-size": "1GB", "heartbeat": "1s", "bid-window": "1s", "runsc": "/x", "debug": "true",
	}
	for _, s := range settings() {
		v, ok := good[s.name]
		if !ok {
			t.Errorf("%s is not tested", s.name)
			continue
		}
		if err := s.set(&node.Config{}, v); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
	}
}

func TestAPIAddress(t *testing.T) {
	for _, c := range []struct{ addr, says string }{
		{"127.0.0.1:4010", ""},
		{"[::1]:4010", ""},
		{"localhost:4010", ""},
		{"0.0.0.0:4010", "no loopback address"},
		{"[::]:4010", "no loopback address"},
		{":4010", "no loopback address"},
		{"192.0.2.2:4010", "no loopback address"},
		{"example.com:4010", "no loopback address"},
		{"localhost.example.com:4010", "no loopback address"},
		{"127.0.0.1", "want HOST:PORT"},
		{"4010", "want HOST:PORT"},
		{"127.0.0.1:0", "from 1 to 65535"},
		{"127.0.0.1:99999", "from 1 to 65535"},
		{"127.0.0.1:http", "from 1 to 65535"},
	} {
		a := newTestApp(t)
		cmd := find(a.root(), "up")
		a.vars["LUMBUNG_API"] = c.addr
		cfg, err := a.nodeConfig(cmd)
		if c.says == "" {
			if err != nil || cfg.API != c.addr {
				t.Errorf("%s: %q, %v", c.addr, cfg.API, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "LUMBUNG_API") || judge(err).Code != exitUsage {
			t.Errorf("%s: %v", c.addr, err)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "run", 3},
		{"run", "run", 0},
		{"rn", "run", 1},
		{"rnu", "run", 1},
		{"urn", "run", 1},
		{"rum", "run", 1},
		{"runn", "run", 1},
		{"nur", "run", 2},
		{"rn", "gc", 2},
		{"statsu", "status", 1},
	} {
		if got, back := distance(c.a, c.b), distance(c.b, c.a); got != c.want || back != c.want {
			t.Errorf("%q to %q: %d, back %d, want %d", c.a, c.b, got, back, c.want)
		}
	}
}
