/** The relay's public address: https, a registered domain, listed in the app's console. */
export const RELAY_ADDRESS = "https://relay.example.org";
