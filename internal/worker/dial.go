package worker

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// maxMessage is the greatest answer that is read: a page of 1,000 steps is larger than gRPC's own bound of 4 MiB.
const maxMessage = 16 << 20

// Dial makes a connection that finds its way back: to one of the addresses (HOST:PORT, separated by commas), or to another
// when that one is gone. It connects when it is first used.
func Dial(addresses string, creds credentials.TransportCredentials, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	options = append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		// A server that comes back is to be found within seconds; gRPC alone would wait for up to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           grpcbackoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
	}, options...)
	var found []resolver.Address
	for address := range strings.SplitSeq(addresses, ",") {
		if address = strings.TrimSpace(address); address != "" {
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, fmt.Errorf("address %q must be HOST:PORT: %w", address, err)
			}
			found = append(found, resolver.Address{Addr: address, ServerName: host})
		}
	}
	switch len(found) {
	case 0:
		return nil, errors.New("no address to connect to")
	case 1:
		return grpc.NewClient(found[0].Addr, options...)
	}
	several := manual.NewBuilderWithScheme("tasker")
	several.InitialState(resolver.State{Addresses: found})
	options = append(options, grpc.WithResolvers(several), grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`))
	return grpc.NewClient(several.Scheme()+":///servers", options...)
}
