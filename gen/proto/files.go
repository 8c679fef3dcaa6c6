// Package clientproto holds the contract's files as clients in other languages take them: without the rules that the server
// checks. Everything else below this folder is generated.
package clientproto

import "embed"

// Files are the .proto files, under tasker/v1.
//
//go:embed tasker/v1/*.proto
var Files embed.FS
