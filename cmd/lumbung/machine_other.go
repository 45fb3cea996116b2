//go:build !linux

package main

import "github.com/lumbung-net/lumbung/node/client"

// clockSynced cannot be known here.
func clockSynced() (synced, known bool) { return false, false }

// checkBuffers has nothing to look at here.
func checkBuffers() (client.Finding, bool) { return client.Finding{}, false }
