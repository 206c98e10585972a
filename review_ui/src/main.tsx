import { render } from 'preact';
import { App } from './app/app';
import './style.css';

render(<App />, document.getElementById('app')!);
